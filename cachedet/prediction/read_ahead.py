"""Images decoded ahead in threads, and handed over in batches of one bucket, in bounded memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from cachedet.data.images import (
    DecodedImage,
    GiantImage,
    decode_bytes,
    decode_giant,
    decoded,
    opened,
)
from cachedet.device import single_core_threads
from cachedet.errors import BadImageError
from cachedet.prediction.image_detector import ImageDetector, PreparedImage
from cachedet.text import printable

_BUDGET = 512 << 20  # bytes of images in memory; one more per thread may be added
Item = TypeVar("Item")
_TIFF = (b"II", b"MM")  # a file's first bytes
_WAITING_BATCHES = 4  # of images that wait until there is a batch of their bucket


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageJob(Generic[Item]):
    """One image of the input, and how it is read."""

    index: int  # place among all images
    item: Item  # whatever the caller knows it by
    read: Callable[[], PreparedImage]  # raises BadImageError


def read_image(file: Path, detector: ImageDetector, *, keeps_pixels: bool) -> PreparedImage:
    """The image as extraction decodes it, and all its pixels where they are wanted.

    Raises BadImageError, with the file's name.
    """
    try:
        with opened(file) as content:
            images: Sequence[DecodedImage | GiantImage]
            if detector.windows and not keeps_pixels:
                images = _decode_sparingly(detector, content)
            else:
                images = decode_for(detector, content, keeps_pixels=keeps_pixels)
    except BadImageError as error:
        raise BadImageError(f"{printable(file)}: {error}") from error
    return detector.prepare(images, keeps_pixels=keeps_pixels)


def decode_for(
    detector: ImageDetector, content: bytes, *, keeps_pixels: bool
) -> list[DecodedImage]:
    """What `prepare` takes of a file's bytes: the image as extraction decodes it, and behind it one
    of all pixels where they are wanted. Raises BadImageError, without a name.
    """
    with decoded(content, image_size=detector.image_size) as image:
        pass
    if not image.is_reduced or not (keeps_pixels or detector.needs_all_pixels(image)):
        return [image]
    return [image, _whole(image, content)]


def _decode_sparingly(
    detector: ImageDetector, content: bytes
) -> Sequence[DecodedImage | GiantImage]:
    """As `decode_for`, but of a giant no array of all pixels."""
    if content[:2] in _TIFF and (giant := decode_giant(content)):
        return [giant]  # that cannot be reduced
    with decoded(content, image_size=detector.image_size) as image:
        pass
    if not image.is_reduced or not detector.needs_all_pixels(image):
        return [image]
    return [image, decode_giant(content) or _whole(image, content)]


def _whole(image: DecodedImage, content: bytes) -> DecodedImage:
    return DecodedImage(pixels=decode_bytes(content)[0], image_hw=image.image_hw)


class HeldMemory:
    """Bytes of the images that are in memory: who would add to too many waits."""

    def __init__(self, budget: int = _BUDGET) -> None:
        self._budget = budget
        self._held = 0
        self._wanted = 0
        self._changed = threading.Condition()

    def want(self, index: int) -> None:
        """Nothing goes on before this image is there: it does not wait."""
        with self._changed:
            self._wanted = index
            self._changed.notify_all()

    def read(self, job: ImageJob[Item]) -> PreparedImage:
        """Do the job, once there is room."""
        with self._changed:
            self._changed.wait_for(lambda: self._held < self._budget or job.index <= self._wanted)
        image = job.read()
        with self._changed:
            self._held += image.nbytes
        return image

    def release(self, image: PreparedImage) -> None:
        """It is no longer needed."""
        with self._changed:
            self._held -= image.nbytes
            self._changed.notify_all()


Batch = list[tuple[ImageJob[Item], PreparedImage]]


def read_batches(
    jobs: Iterable[ImageJob[Item]],
    *,
    workers: int,
    batch_size: int,
    memory: HeldMemory,
    on_bad: Callable[[ImageJob[Item], BadImageError], None],
) -> Generator[Batch[Item], None, None]:
    """Batches of one bucket, of images in the order of the jobs; which ones share a batch depends
    on nothing but that order.

    An image waits for others of its bucket while at most four batches wait. Whoever takes a batch
    releases its images from `memory`.
    """
    waiting: dict[object, Batch[Item]] = {}
    images = _read_in_order(jobs, workers=workers, ahead=2 * batch_size, memory=memory)
    with closing(images):
        for job, result in images:
            try:
                image = result.result()
            except BadImageError as error:
                on_bad(job, error)
                continue
            batch = waiting.setdefault(image.bucket, [])
            batch.append((job, image))
            if len(batch) == batch_size:
                yield waiting.pop(image.bucket)
            elif _is_much(waiting, batch_size):
                yield waiting.pop(next(iter(waiting)))  # the one that waits longest
    yield from waiting.values()


def _is_much(waiting: dict[object, Batch[Item]], batch_size: int) -> bool:
    images = [image for batch in waiting.values() for _, image in batch]
    nbytes = sum(image.nbytes for image in images)
    return len(images) >= _WAITING_BATCHES * batch_size or nbytes > _BUDGET // 2


def _read_in_order(
    jobs: Iterable[ImageJob[Item]], *, workers: int, ahead: int, memory: HeldMemory
) -> Generator[tuple[ImageJob[Item], Future[PreparedImage]], None, None]:
    reading: deque[tuple[ImageJob[Item], Future[PreparedImage]]] = deque()
    pool = single_core_threads(workers, "decode")

    def oldest() -> tuple[ImageJob[Item], Future[PreparedImage]]:
        job, result = reading.popleft()
        memory.want(job.index)
        return job, result

    try:
        for job in jobs:
            reading.append((job, pool.submit(memory.read, job)))
            if len(reading) > workers + ahead:
                yield oldest()
        while reading:
            yield oldest()
    finally:  # also where whoever takes the batches stops
        for _, result in reading:
            result.cancel()
        memory.want(max((job.index for job, _ in reading), default=0))
        pool.shutdown()

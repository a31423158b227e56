"""A look at all image files before any work: what they are, and which cannot be used."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cachedet.data.coco import CocoDataset
from cachedet.data.file_names import NearestFiles, is_storable, require_storable
from cachedet.data.images import DecodedImage, decoded
from cachedet.errors import BadImageError
from cachedet.structures import SizeHW
from cachedet.text import printable

_LISTED = 20  # bad files named in one message
_LEAST_KEPT = 16  # images that fit into what is kept; larger ones are decoded again


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """What one reading of all image files gave."""

    contents: NDArray[np.uint64]  # (N,) hash of each file's bytes; 0 where it cannot be read
    bad: tuple[tuple[int, str], ...]  # row, reason
    notes: tuple[tuple[int, str], ...]  # row, what was noticed; the image is used
    images: dict[int, DecodedImage] = field(default_factory=dict)  # by row, as many as fit
    missing: frozenset[int] = frozenset()  # rows of the bad ones whose files are not there
    misnamed: frozenset[int] = frozenset()  # whose names no file or no store can have


@dataclass(frozen=True, kw_only=True)
class _Finding:
    row: int
    content_hash: int = 0
    fault: str | None = None
    is_missing: bool = False
    is_misnamed: bool = False
    note: str | None = None


class _Kept:
    """The images that came first, up to a number of bytes."""

    def __init__(self, nbytes: int) -> None:
        self.images: dict[int, DecodedImage] = {}
        self._left = nbytes
        self._largest = nbytes // _LEAST_KEPT
        self._lock = threading.Lock()

    def offer(self, row: int, image: DecodedImage) -> None:
        nbytes = image.pixels.nbytes
        with self._lock:
            if nbytes <= min(self._left, self._largest):
                self._left -= nbytes
                self.images[row] = image


def scan_images(
    dataset: CocoDataset,
    *,
    workers: int,
    image_size: int | None = None,  # long side of the base view; None: all pixels are decoded
    keep_nbytes: int = 0,  # of decoded images, which then need no second reading
    on_image: Callable[[int, DecodedImage], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Scan:
    """Read and decode every image once, in threads: hashes, and all bad files at once.

    `on_image` is called in these threads with a row and what was decoded, whatever its size.
    """
    findings, kept = [], _Kept(keep_nbytes)

    def look(row: int, image: DecodedImage) -> None:
        if on_image is not None:
            on_image(row, image)
        _require_size(image, dataset.annotations.size_of(row))
        kept.offer(row, image)

    def inspect(row: int) -> _Finding:
        return _inspect(dataset, row, image_size, look)

    names = dataset.annotations.file_names
    dataset.files.expect(filter(is_storable, names))
    with ThreadPoolExecutor(workers, thread_name_prefix="scan") as readers:
        rows = range(len(dataset.annotations))
        for finding in readers.map(inspect, rows):
            findings.append(finding)
            if on_progress is not None:
                on_progress(1)
    nearest = NearestFiles(dataset.files.names())
    return Scan(
        contents=np.array([one.content_hash for one in findings], dtype=np.uint64),
        bad=tuple(
            (one.row, one.fault + (nearest.hint(names[one.row]) if one.is_missing else ""))
            for one in findings
            if one.fault is not None
        ),
        notes=tuple((one.row, one.note) for one in findings if one.note and not one.fault),
        images=kept.images,
        missing=frozenset(one.row for one in findings if one.is_missing),
        misnamed=frozenset(one.row for one in findings if one.is_misnamed),
    )


def require_good(dataset: CocoDataset, scan: Scan) -> None:
    """Raises BadImageError that lists the bad files, if there are any."""
    if not scan.bad:
        return
    listed = [
        f"  {printable(dataset.files.where(dataset.annotations.file_names[row]))}: {fault}"
        for row, fault in scan.bad[:_LISTED]
    ]
    more = len(scan.bad) - len(listed)
    raise BadImageError(
        f"{len(scan.bad)} of {len(dataset.annotations)} images cannot be used:",
        *listed,
        *([f"  and {more} more"] if more else []),
        "Nothing was written. Repair the files, or leave them out with --on-bad-image skip",
    )


def content_hash_of(content: bytes) -> int:
    """What `Scan.contents` holds of a file's bytes."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _inspect(
    dataset: CocoDataset,
    row: int,
    image_size: int | None,
    look: Callable[[int, DecodedImage], None],
) -> _Finding:
    content_hash, note, is_opened = 0, None, False
    name = dataset.annotations.file_names[row]
    try:
        require_storable(name)
        with dataset.files.opened(name) as content:
            is_opened, content_hash = True, content_hash_of(content)
            with decoded(content, image_size=image_size) as image:
                note = image.note
                look(row, image)
    except BadImageError as error:
        return _Finding(
            row=row,
            content_hash=content_hash,
            fault=str(error),
            is_missing=isinstance(error.__cause__, FileNotFoundError | NotADirectoryError),
            is_misnamed=not is_opened and _is_of_name(error.__cause__),
        )
    return _Finding(row=row, content_hash=content_hash, note=note)


def _is_of_name(cause: BaseException | None) -> bool:
    """Of what came before a file was open: control characters have no cause, NUL a ValueError."""
    if isinstance(cause, OSError):
        return cause.errno in (errno.ENAMETOOLONG, errno.EILSEQ)
    return cause is None or isinstance(cause, ValueError)


_LYING = ": it was annotated lying, and EXIF turns it"


def _require_size(image: DecodedImage, annotated_hw: SizeHW) -> None:
    if image.image_hw == annotated_hw:
        return
    (height, width), upright = annotated_hw, f"{image.image_hw[1]}x{image.image_hw[0]}"
    why = ""
    if image.image_hw == annotated_hw[::-1]:
        why = _LYING if image.is_turned else ": width and height swapped"
    raise BadImageError(f"annotated as {width}x{height}, the upright file is {upright}{why}")

"""Detect in image files: the one verb that joins backbone and heads."""

from __future__ import annotations

import io
import json
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.data.images import DecodedImage
from cachedet.data.masks import decode_mask, paste_masks, rle_of
from cachedet.data.views import View, parse_views
from cachedet.device import choose_device, usable_cores
from cachedet.errors import BadImageError, ConfigError, InputError, UnwrittenError
from cachedet.evaluation.inference import EVAL_VIEW
from cachedet.evaluation.plots import Drawing, draw_boxes
from cachedet.extract import default_workers
from cachedet.outputs import (
    DRAWING_COMMENT,
    Kind,
    distinct_names,
    require_all_ours,
    require_folder,
    require_ours,
    write_file,
)
from cachedet.prediction.finishing import Finisher
from cachedet.prediction.image_detector import ImageDetector, PreparedImage, load_image_detector
from cachedet.prediction.image_list import list_images
from cachedet.prediction.read_ahead import Batch, HeldMemory, ImageJob, read_batches, read_image
from cachedet.prediction.videos import Frame, is_video, read_frames
from cachedet.progress import StageProgress
from cachedet.structures import CategoryMap, Detections, SizeHW
from cachedet.text import printable

_FOUND = "detections.json"
_DRAWERS = 4  # threads at most


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageReport:
    """What was detected in one image file."""

    file: Path
    drawing: Path | None  # None where none was asked for
    detections: Detections  # pixels of the image, best first
    categories: CategoryMap
    size_hw: SizeHW
    frame: int | None = None  # of a video: its number, from 0
    time: float | None = None  # of a video: seconds
    highest: float | None = None  # score of all that was found, also below the least one

    def to_json(self) -> dict[str, Any]:
        """File, drawing and detections: name, category_id, score, box xyxy, COCO RLE of a mask."""
        columns = (self.detections.boxes, self.detections.scores, self.detections.labels)
        detections: list[dict[str, Any]] = [
            {
                "name": self.categories.names[label],
                "category_id": self.categories.ids[label],
                "score": score,
                "box": box,
            }
            for box, score, label in zip(*(column.tolist() for column in columns), strict=True)
        ]
        codes = paste_masks(self.detections, self.size_hw)
        for detection, code in zip(detections, codes, strict=False):
            detection["segmentation"] = rle_of(code, self.size_hw)
        drawing = None if self.drawing is None else str(self.drawing)
        frame = {} if self.frame is None else {"frame": self.frame, "time": self.time}
        return {"file": str(self.file), "drawing": drawing, **frame, "detections": detections}


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictReport:
    """What one call of `predict` did."""

    images: tuple[ImageReport, ...]
    bad: tuple[tuple[Path, str], ...]  # files that cannot be used, and why
    out: Path  # folder of the drawings and detections.json

    def to_json(self) -> dict[str, Any]:
        """What was detected, and the files that were left out."""
        return {
            "images": [image.to_json() for image in self.images],
            "bad": [{"file": str(file), "reason": reason} for file, reason in self.bad],
        }


def predict(
    run: Path | str,
    *,
    images: Sequence[Path | str],
    out: Path | str,
    weights: str = "auto",
    views: str = EVAL_VIEW,
    recursive: bool = False,
    every: int = 1,
    min_score: float = 0.3,
    drawings: bool = True,
    batch_size: int = 0,
    workers: int = 0,
    device: str = "auto",
    detector: nn.Module | None = None,
    backbone: FrozenBackbone | None = None,
) -> PredictReport:
    """Detect in image and video files; writes drawn images and detections.json.

    Args:
        run: folder of the run; its best weights are taken.
        images: image and video files, folders of images, or patterns such as "photos/**/*.jpg";
            each file counts once. What cannot be decoded is named in the report.
        out: folder to write into; made where it is missing. Of what is there, only drawings and
            detections that `predict` made are replaced.
        weights: of the backbone: "auto", "none" or a file.
        views: of each image, as `parse_views` takes them; their detections are merged as
            `evaluate` merges them.
        recursive: whether folders in folders are looked into; `out` is passed over.
        every: only every so many frames of a video, and images of a folder.
        min_score: least score of what is drawn and listed, 0..1.
        drawings: whether images are drawn; without, large photos are read several times as fast.
        batch_size: images per forward; 0: as suits the device.
        workers: threads that read and decode images; 0: one per core.
        device: "auto", "cpu", "cuda", ...
        detector: what the run trained, where that was an object.
        backbone: what the store was extracted with, where that was an object.

    Raises:
        CheckpointError: no such run, or weights that do not fit `detector`.
        BackboneError: the run's backbone cannot be had, or has other weights now.
        ConfigError: a number out of range.
        InputError: a view that files cannot have, no images, or a file in `out` that another
            made.
        UnwrittenError: the disk refused in the middle; it holds what was found so far.

    Example:
        >>> report = cachedet.predict("runs/first", images=["photos/"], out="drawn/")
        >>> report.images[0].detections.boxes  # (D, 4) xyxy in pixels
    """
    chosen = _views_of_files(views)
    _require_numbers(batch_size=batch_size, workers=workers, every=every)
    out, named = Path(out), [Path(path) for path in images]
    files = list_images(named, recursive=recursive, every=every, out=out)
    planned = _plan_drawings(files, out, inputs=named, drawings=drawings)
    image_detector = load_image_detector(
        Path(run), weights=weights, device=device, views=chosen, detector=detector,
        backbone=backbone,
    )  # fmt: skip
    prediction = _Prediction(
        detector=image_detector, files=files, drawings=planned, every=every, min_score=min_score
    )
    try:
        prediction.run(
            batch_size=batch_size or _batch_size_for(choose_device(device).type),
            workers=workers or default_workers(),
        )
        return _write_found(prediction.report(out))
    except InputError as error:
        raise UnwrittenError(str(error), report=prediction.report(out)) from error


def _require_numbers(*, batch_size: int, workers: int, every: int) -> None:
    if min(batch_size, workers) < 0 or every < 1:
        raise ConfigError(
            f"batch_size and workers expect 0 or more, every 1 or more, got {batch_size}, "
            f"{workers} and {every}"
        )


def _write_found(report: PredictReport) -> PredictReport:
    content = json.dumps(report.to_json()["images"], indent=1).encode()
    write_file(report.out / _FOUND, content, kind=Kind.FOUND)
    return report


def _batch_size_for(device: str) -> int:
    """On a CPU the images of a batch are computed one after the other in any case."""
    return 2 if device == "cpu" else 16


@dataclass(frozen=True, kw_only=True, eq=False)
class _Item:
    """One image or frame on its way."""

    file: Path
    drawing: Path | None
    frame: Frame | None = None


class _Prediction:
    """One call's images on their way, and what was found in them so far."""

    def __init__(
        self,
        *,
        detector: ImageDetector,
        files: Sequence[Path],
        drawings: Sequence[Path | None],  # of a video a folder
        every: int,
        min_score: float,
    ) -> None:
        self._detector = detector
        self._files = files
        self._drawings = drawings
        self._every = every
        self._min_score = min_score
        self._memory = HeldMemory()
        self._found: dict[int, ImageReport] = {}
        self._bad: list[tuple[Path, str]] = []

    def run(self, *, batch_size: int, workers: int) -> None:
        """All images. Raises InputError where a drawing cannot be written."""
        drawers = max(1, min(_DRAWERS, (usable_cores() or 2) // 2))
        with (
            StageProgress("predict", total=len(self._files), unit="images") as progress,
            Finisher(drawers) as finisher,
            closing(self._jobs(progress)) as jobs,
        ):
            batches = read_batches(
                jobs,
                workers=workers,
                batch_size=batch_size,
                memory=self._memory,
                on_bad=lambda job, error: self._note_bad(job.item.file, error, progress),
            )
            with closing(batches):  # else its threads would outlive an error
                for batch in batches:
                    self._detect(batch, finisher)
                    progress.advance(len(batch))

    def report(self, out: Path) -> PredictReport:
        """In the order of the files."""
        place = {file: number for number, file in enumerate(self._files)}
        return PredictReport(
            images=tuple(self._found[index] for index in sorted(self._found)),
            bad=tuple(sorted(self._bad, key=lambda bad: place[bad[0]])),
            out=out,
        )

    def _jobs(self, progress: StageProgress) -> Generator[ImageJob[_Item], None, None]:
        with closing(self._items(progress)) as items:
            for index, item in enumerate(items):
                yield ImageJob(index=index, item=item, read=partial(self._read, item))

    def _items(self, progress: StageProgress) -> Generator[_Item, None, None]:
        for file, drawing in zip(self._files, self._drawings, strict=True):
            if not is_video(file):
                yield _Item(file=file, drawing=drawing)
                continue
            try:
                with closing(read_frames(file, every=self._every)) as frames:
                    for frame in frames:
                        path = drawing and drawing / f"{frame.number:06d}.jpg"
                        yield _Item(file=file, drawing=path, frame=frame)
            except BadImageError as error:
                self._note_bad(file, error, progress)

    def _note_bad(self, file: Path, error: BadImageError, progress: StageProgress) -> None:
        """The others are not to blame for a file that cannot be read."""
        self._bad.append((file, str(error).removeprefix(f"{printable(file)}: ")))
        progress.advance()

    def _read(self, item: _Item) -> PreparedImage:
        keeps_pixels = item.drawing is not None
        if item.frame is None:
            return read_image(item.file, self._detector, keeps_pixels=keeps_pixels)
        pixels = item.frame.pixels()
        image = DecodedImage(pixels=pixels, image_hw=(pixels.shape[0], pixels.shape[1]))
        return self._detector.prepare([image], keeps_pixels=keeps_pixels)

    def _detect(self, batch: Batch[_Item], finisher: Finisher) -> None:
        found = self._detector.detect([image for _, image in batch])
        for (job, image), of_image in zip(batch, found, strict=True):
            report = ImageReport(
                file=job.item.file,
                drawing=job.item.drawing,
                detections=of_image.above(self._min_score),
                categories=self._detector.categories,
                size_hw=image.image_hw,
                frame=None if job.item.frame is None else job.item.frame.number,
                time=None if job.item.frame is None else job.item.frame.time,
                highest=float(of_image.scores.max()) if len(of_image) else None,
            )
            self._found[job.index] = report
            finisher.do(partial(self._finish, report, image))

    def _finish(self, report: ImageReport, image: PreparedImage) -> None:
        try:
            if report.drawing is not None and image.pixels is not None:
                _draw(report, image.pixels, report.drawing)
        finally:
            self._memory.release(image)


def _draw(report: ImageReport, pixels: NDArray[np.uint8], to: Path) -> None:
    drawing = make_drawing(report.detections, report.categories, size_hw=report.size_hw)
    buffer = io.BytesIO()
    draw_boxes(pixels, drawing).save(buffer, "JPEG", comment=DRAWING_COMMENT)
    write_file(to, buffer.getvalue(), kind=Kind.DRAWING)


def _plan_drawings(
    files: Sequence[Path], out: Path, *, inputs: Sequence[Path], drawings: bool
) -> list[Path | None]:
    """Where each image is drawn, of a video a folder: no two share one, and nothing of the user's
    is replaced.

    Raises InputError.
    """
    require_folder(out, inputs=inputs)
    require_ours(out / _FOUND, kind=Kind.FOUND)
    if not drawings:
        return [None] * len(files)
    names = distinct_names(list(map(_drawing_name, files)))
    of_images = [name for name, file in zip(names, files, strict=True) if not is_video(file)]
    require_all_ours(out, of_images, kind=Kind.DRAWING)
    return [out / name for name in names]


def _drawing_name(file: Path) -> str:
    if is_video(file):
        return f"{file.stem}-frames"
    return f"{file.stem}{'' if file.suffix == '.jpg' else file.suffix}.jpg"


def make_drawing(detections: Detections, categories: CategoryMap, *, size_hw: SizeHW) -> Drawing:
    """Boxes with name and score, the weakest first so that the strongest lie on top."""
    masks = [decode_mask(code, size_hw) > 0 for code in paste_masks(detections, size_hw)]
    order = range(len(detections) - 1, -1, -1)
    labels = detections.labels.numpy()[list(order)]
    return Drawing(
        boxes=detections.boxes.double().numpy()[list(order)],
        labels=labels,
        captions=tuple(
            f"{categories.names[detections.labels[i]]} {float(detections.scores[i]):.2f}"
            for i in order
        ),
        masks=tuple(masks[i] for i in order) if masks else (),
    )


def _views_of_files(text: str) -> tuple[View, ...]:
    """Views that need nothing but the pixels. Raises InputError."""
    views = parse_views(text)
    if any(view.family in ("crop", "jitter") for view in views):
        raise InputError(
            f"predict expects views among base, hflip and scale=<f>, got {text!r}: crop and jitter "
            "are drawn from a data set's image ids, which image files do not have; leave them out"
        )
    return views

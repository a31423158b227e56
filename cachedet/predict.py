"""Detect in image files: the one verb that joins backbone and heads."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.data.image_folders import images_in
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
from cachedet.prediction.read_ahead import Batch, HeldMemory, ImageJob, read_batches, read_image
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
        return {"file": str(self.file), "drawing": drawing, "detections": detections}


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
    min_score: float = 0.3,
    drawings: bool = True,
    batch_size: int = 0,
    workers: int = 0,
    device: str = "auto",
    detector: nn.Module | None = None,
    backbone: FrozenBackbone | None = None,
) -> PredictReport:
    """Detect in image files or folders of them; writes drawn images and detections.json.

    Args:
        run: folder of the run; its best weights are taken.
        images: files, or folders of files; what cannot be decoded is named in the report.
        out: folder to write into; made where it is missing. Of what is there, only drawings and
            detections that `predict` made are replaced.
        weights: of the backbone: "auto", "none" or a file.
        views: of each image, as `parse_views` takes them; their detections are merged as
            `evaluate` merges them.
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
    if batch_size < 0 or workers < 0:
        raise ConfigError(
            f"batch_size and workers expect 0 or more, got {batch_size} and {workers}"
        )
    files = _image_files([Path(path) for path in images])
    out = Path(out)
    planned = _plan_drawings(files, out, images=images, drawings=drawings)
    image_detector = load_image_detector(
        Path(run), weights=weights, device=device, views=chosen, detector=detector,
        backbone=backbone,
    )  # fmt: skip
    prediction = _Prediction(
        detector=image_detector, files=files, drawings=planned, min_score=min_score
    )
    try:
        prediction.run(
            batch_size=batch_size or _batch_size_for(choose_device(device).type),
            workers=workers or default_workers(),
        )
        report = prediction.report(out)
        content = json.dumps(report.to_json()["images"], indent=1).encode()
        write_file(out / _FOUND, content, kind=Kind.FOUND)
    except InputError as error:
        raise UnwrittenError(str(error), report=prediction.report(out)) from error
    return report


def _batch_size_for(device: str) -> int:
    """On a CPU the images of a batch are computed one after the other in any case."""
    return 2 if device == "cpu" else 16


class _Prediction:
    """One call's images on their way, and what was found in them so far."""

    def __init__(
        self,
        *,
        detector: ImageDetector,
        files: Sequence[Path],
        drawings: Sequence[Path | None],
        min_score: float,
    ) -> None:
        self._detector = detector
        self._files = files
        self._drawings = drawings
        self._min_score = min_score
        self._memory = HeldMemory()
        self._found: dict[int, ImageReport] = {}
        self._bad: dict[int, str] = {}

    def run(self, *, batch_size: int, workers: int) -> None:
        """All images. Raises InputError where a drawing cannot be written."""
        jobs = [ImageJob(index=index, read=partial(self._read, index)) for index in self._indices]
        drawers = max(1, min(_DRAWERS, (usable_cores() or 2) // 2))
        with (
            StageProgress("predict", total=len(jobs), unit="images") as progress,
            Finisher(drawers) as finisher,
        ):

            def on_bad(job: ImageJob, error: BadImageError) -> None:
                name = printable(self._files[job.index])
                self._bad[job.index] = str(error).removeprefix(f"{name}: ")
                progress.advance()

            batches = read_batches(
                jobs, workers=workers, batch_size=batch_size, memory=self._memory, on_bad=on_bad
            )
            with closing(batches):  # else its threads would outlive an error
                for batch in batches:
                    self._detect(batch, finisher)
                    progress.advance(len(batch))

    def report(self, out: Path) -> PredictReport:
        """In the order of the files."""
        return PredictReport(
            images=tuple(self._found[index] for index in sorted(self._found)),
            bad=tuple((self._files[index], self._bad[index]) for index in sorted(self._bad)),
            out=out,
        )

    @property
    def _indices(self) -> range:
        return range(len(self._files))

    def _read(self, index: int) -> PreparedImage:
        """The others are not to blame for a file that cannot be read. Raises BadImageError."""
        keeps_pixels = self._drawings[index] is not None
        return read_image(self._files[index], self._detector, keeps_pixels=keeps_pixels)

    def _detect(self, batch: Batch, finisher: Finisher) -> None:
        found = self._detector.detect([image for _, image in batch])
        for (job, image), of_image in zip(batch, found, strict=True):
            report = ImageReport(
                file=self._files[job.index],
                drawing=self._drawings[job.index],
                detections=of_image.above(self._min_score),
                categories=self._detector.categories,
                size_hw=image.image_hw,
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
    files: Sequence[Path], out: Path, *, images: Sequence[Path | str], drawings: bool
) -> list[Path | None]:
    """Where each image is drawn: no two share a file, and nothing of the user's is replaced.

    Raises InputError.
    """
    require_folder(out, inputs=[Path(path) for path in images])
    require_ours(out / _FOUND, kind=Kind.FOUND)
    if not drawings:
        return [None] * len(files)
    names = distinct_names(
        [f"{file.stem}{'' if file.suffix == '.jpg' else file.suffix}.jpg" for file in files]
    )
    require_all_ours(out, names, kind=Kind.DRAWING)
    return [out / name for name in names]


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


def _image_files(images: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in images:
        if os.path.isdir(path):
            files.extend(images_in(path))
        elif os.path.lexists(path):  # whether it can be read is seen when its turn comes
            files.append(path)
        else:
            raise InputError(f"there is no image {printable(path)}{_hint_of_url(path)}")
    if not files:
        raise InputError("expected at least one image or folder of images")
    return files


def _hint_of_url(path: Path) -> str:
    """A path has one slash where a URL has two."""
    is_url = re.match(r"(https?|ftp|s3|gs):/", str(path), re.IGNORECASE)
    return "; URLs are not taken: download the image and name the file" if is_url else ""

"""Detect in image files: the one verb that joins backbone and heads."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from cachedet.data.images import DecodedImage
from cachedet.data.pixel_windows import PixelWindows, parse_file_views
from cachedet.data.views import DRAWN_AFRESH, View
from cachedet.device import choose_device, default_workers, usable_cores
from cachedet.errors import BadImageError, ConfigError, InputError, UnwrittenError
from cachedet.evaluation.inference import EVAL_VIEW
from cachedet.exporting.exported_model import load_model_detector
from cachedet.prediction.finishing import Finisher
from cachedet.prediction.image_detector import (
    ImageDetector,
    PreparedImage,
    load_image_detector,
)
from cachedet.prediction.image_list import list_images
from cachedet.prediction.image_report import ImageReport
from cachedet.prediction.output_plan import OutputPlan, parse_formats, plan_outputs
from cachedet.prediction.read_ahead import Batch, HeldMemory, ImageJob, read_batches, read_image
from cachedet.prediction.selection import Selection
from cachedet.prediction.videos import Frame, is_video, read_frames
from cachedet.progress import StageProgress
from cachedet.text import printable
from cachedet.training.run_folder import RunFolder

if TYPE_CHECKING:  # with an exported model timm is not needed
    from cachedet.backbone.frozen import FrozenBackbone

_FINISHERS = 4  # threads at most


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictReport:
    """What one call of `predict` did."""

    images: tuple[ImageReport, ...]
    bad: tuple[tuple[Path, str], ...]  # files that cannot be used, and why
    out: Path  # folder of the drawings and lists

    def to_json(self) -> dict[str, Any]:
        """What was detected, and the files that were left out."""
        return {
            "images": [image.to_json() for image in self.images],
            "bad": [{"file": str(file), "reason": reason} for file, reason in self.bad],
        }


def predict(
    run: Path | str | None = None,
    *,
    images: Sequence[Path | str],
    out: Path | str,
    model: Path | str | None = None,
    weights: str = "auto",
    views: str = EVAL_VIEW,
    recursive: bool = False,
    every: int = 1,
    min_score: float = 0.3,
    classes: Sequence[str] | None = None,
    max_per_image: int | None = None,
    iou: float | None = None,
    formats: str = "json",
    drawings: bool = True,
    crops: bool = False,
    batch_size: int = 0,
    workers: int = 0,
    device: str = "auto",
    detector: nn.Module | None = None,
    backbone: FrozenBackbone | None = None,
) -> PredictReport:
    """Detect in image and video files; writes drawn images, crops and lists of what was found.

    Args:
        run: folder of the run; its best weights are taken.
        model: a file of `export`, instead of a run.
        images: image and video files, folders, or patterns such as "photos/**/*.jpg"; each file
            counts once. What cannot be decoded is named in the report.
        out: folder to write into. Of what is there, only what `predict` made is replaced.
        weights: of the backbone: "auto", "none" or a file.
        views: of each image, as `parse_views` takes them, and tile=640px: as many windows of 640
            pixels as it takes; merged as `evaluate` merges them.
        recursive: whether folders in folders are looked into; `out` is passed over.
        every: only every so many frames of a video, and images of a folder.
        min_score, classes, max_per_image: what is listed and drawn: the least score, 0..1; names
            (None: all); the best so many of an image.
        iou: of suppression, in place of the run's.
        formats: of the lists, such as "json,coco,yolo,csv".
        drawings, crops: whether images are drawn, and boxes cut out; without either, large photos
            are read several times as fast.
        batch_size, workers: images or windows per forward, and threads that decode; 0: as suits
            the machine.
        device, detector, backbone: "auto", "cpu", ...; what was trained, and extracted with, where
            that was an object.

    Raises:
        CheckpointError, BackboneError, ConfigError: no such run, other weights, a wrong number.
        ExportError: a model not of `export`, or no onnxruntime.
        InputError: neither a run nor a model, or both; a view that files cannot have, no images,
            a class that the run does not know, or a file in `out` that another made.
        UnwrittenError: the disk refused in the middle; it holds what was found so far.

    Examples:
        >>> report = cachedet.predict("runs/first", images=["photos/"], out="drawn/")
        >>> report.images[0].detections.boxes  # (D, 4) xyxy in pixels
    """
    _require_given(run, model, images)
    chosen, windows = _views_of_files(views)
    _require_numbers(batch_size=batch_size, workers=workers, every=every, iou=iou)
    selection = Selection(min_score=min_score, classes=classes, max_per_image=max_per_image)
    named = [Path(path) for path in images]
    files = _list_images(named, recursive=recursive, every=every, out=Path(out), run=run)
    lists = parse_formats(formats)
    plan = plan_outputs(
        files, Path(out), inputs=named, formats=lists, drawings=drawings, crops=crops
    )
    if run is not None:
        image_detector = load_image_detector(
            Path(run), weights=weights, device=device, views=chosen, windows=windows, iou=iou,
            most=max_per_image, detector=detector, backbone=backbone,
        )  # fmt: skip
    else:
        settings = {"weights": weights, "device": device, "views": views}
        image_detector = load_model_detector(Path(str(model)), **settings, iou=iou)
    selection.require_known(image_detector.categories)
    prediction = _Prediction(image_detector, selection, plan, files=files, every=every)
    batch_size = batch_size or _batch_size_for(choose_device(device).type)
    return prediction.run(batch_size=batch_size, workers=workers or default_workers())


def _require_given(
    run: Path | str | None, model: Path | str | None, images: Sequence[Path | str]
) -> None:
    if (run is None) == (model is None):
        raise InputError("predict expects a run or --model, a file of `export`: one of the two")
    if not images:
        raise InputError("predict expects images to look at: files, folders, patterns or videos")


def _list_images(
    named: Sequence[Path], *, recursive: bool, every: int, out: Path, run: Path | str | None
) -> list[Path]:
    """`list_images`; where there are none, a `run` that is none is the better thing to name."""
    try:
        return list_images(named, recursive=recursive, every=every, out=out)
    except InputError:
        if run is not None:
            RunFolder.open(Path(run))
        raise


def _require_numbers(*, batch_size: int, workers: int, every: int, iou: float | None) -> None:
    if min(batch_size, workers) < 0 or every < 1:
        raise ConfigError(
            f"batch_size and workers expect 0 or more, every 1 or more, got {batch_size}, "
            f"{workers} and {every}"
        )
    if iou is not None and not 0 < iou <= 1:
        raise ConfigError(f"iou expects more than 0 and at most 1, got {iou}")


def _batch_size_for(device: str) -> int:
    """On a CPU the images of a batch are computed one after the other in any case."""
    return 2 if device == "cpu" else 16


@dataclass(frozen=True, kw_only=True, eq=False)
class _Item:
    """One image or frame on its way."""

    file: Path
    name: str
    drawing: Path | None
    frame: Frame | None = None


class _Prediction:
    """One call's images on their way, and what was found in them so far."""

    def __init__(
        self,
        detector: ImageDetector,
        selection: Selection,
        plan: OutputPlan,
        *,
        files: Sequence[Path],
        every: int,
    ) -> None:
        self._detector = detector
        self._selection = selection
        self._plan = plan
        self._files = files
        self._every = every
        self._memory = HeldMemory()
        self._found: dict[int, ImageReport] = {}
        self._bad: list[tuple[Path, str]] = []

    def run(self, *, batch_size: int, workers: int) -> PredictReport:
        """All images. Raises UnwrittenError."""
        try:
            self._detect_all(batch_size=batch_size, workers=workers)
            report = self._report()
            self._plan.write_lists(report.images, self._detector.categories)
        except InputError as error:
            raise UnwrittenError(str(error), report=self._report()) from error
        return report

    def _report(self) -> PredictReport:
        """In the order of the files."""
        place = {file: number for number, file in enumerate(self._files)}
        return PredictReport(
            images=tuple(self._found[index] for index in sorted(self._found)),
            bad=tuple(sorted(self._bad, key=lambda bad: place[bad[0]])),
            out=self._plan.out,
        )

    def _detect_all(self, *, batch_size: int, workers: int) -> None:
        """Raises InputError where a file cannot be written."""
        finishers = max(1, min(_FINISHERS, (usable_cores() or 2) // 2))
        with (
            StageProgress("predict", total=len(self._files), unit="images") as progress,
            Finisher(finishers) as finisher,
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
                    self._detect(batch, finisher, windows_at_once=batch_size)
                    progress.advance(len(batch))

    def _jobs(self, progress: StageProgress) -> Generator[ImageJob[_Item], None, None]:
        with closing(self._items(progress)) as items:
            for index, item in enumerate(items):
                yield ImageJob(index=index, item=item, read=partial(self._read, item))

    def _items(self, progress: StageProgress) -> Generator[_Item, None, None]:
        plan = self._plan
        for file, name, drawing in zip(self._files, plan.names, plan.drawings, strict=True):
            if not is_video(file):
                yield _Item(file=file, name=name, drawing=drawing)
                continue
            try:
                with closing(read_frames(file, every=self._every)) as frames:
                    for frame in frames:
                        number = f"{frame.number:06d}"
                        path = drawing and drawing / f"{number}.jpg"
                        yield _Item(file=file, name=f"{name}/{number}", drawing=path, frame=frame)
            except BadImageError as error:
                self._note_bad(file, error, progress)

    def _note_bad(self, file: Path, error: BadImageError, progress: StageProgress) -> None:
        """The others are not to blame for a file that cannot be read."""
        self._bad.append((file, str(error).removeprefix(f"{printable(file)}: ")))
        progress.advance()

    def _read(self, item: _Item) -> PreparedImage:
        keeps_pixels = self._plan.needs_pixels
        if item.frame is None:
            return read_image(item.file, self._detector, keeps_pixels=keeps_pixels)
        pixels = item.frame.pixels()
        image = DecodedImage(pixels=pixels, image_hw=(pixels.shape[0], pixels.shape[1]))
        return self._detector.prepare([image], keeps_pixels=keeps_pixels)

    def _detect(self, batch: Batch[_Item], finisher: Finisher, *, windows_at_once: int) -> None:
        images = [image for _, image in batch]
        found = self._detector.detect(images, windows_at_once=windows_at_once)
        for (job, image), of_image in zip(batch, found, strict=True):
            item, categories = job.item, self._detector.categories
            report = ImageReport(
                file=item.file,
                name=item.name,
                drawing=item.drawing,
                detections=self._selection(of_image, categories),
                categories=categories,
                size_hw=image.image_hw,
                frame=None if item.frame is None else item.frame.number,
                time=None if item.frame is None else item.frame.time,
                highest=float(of_image.scores.max()) if len(of_image) else None,
            )
            self._found[job.index] = report
            finisher.do(partial(self._finish, report, image))

    def _finish(self, report: ImageReport, image: PreparedImage) -> None:
        try:
            self._plan.write_image(report, image.pixels)
        finally:
            self._memory.release(image)


def _views_of_files(text: str) -> tuple[tuple[View, ...], tuple[PixelWindows, ...]]:
    """Views and windows that need nothing but the pixels. Raises InputError."""
    views, windows = parse_file_views(text)
    if any(view.family in ("crop", *DRAWN_AFRESH) for view in views):
        raise InputError(
            "predict expects views among base, hflip, scale=<f>, tile=<n> and tile=<size>px, got "
            f"{text!r}: crop, jitter and colour are drawn from a data set's image ids, which image "
            "files do not have; leave them out"
        )
    return views, windows

"""The pipeline from images to scores on the built-in data set, and what the cache saved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.config.run import ExtractConfig, TrainConfig, load_train_config
from cachedet.data.images import decode_image
from cachedet.data.shapes import ShapesPaths, write_shapes
from cachedet.device import default_workers
from cachedet.drawing.contact_sheet import SheetRow, contact_sheet
from cachedet.drawing.image_drawing import Drawing, make_drawing
from cachedet.evaluate import evaluate
from cachedet.evaluation.metrics import CocoScores
from cachedet.extract import ExtractReport, extract
from cachedet.live.modes import inputs_of
from cachedet.loading.loader import make_planner
from cachedet.outputs import require_empty_folder
from cachedet.prediction.image_detector import ImageDetector, join_run
from cachedet.store.reader import FeatureStore
from cachedet.train import train

TRAIN_IMAGES = 320
VAL_IMAGES = 96
_IMAGE_SIZE = 320
_SHEET_IMAGES = 12
_SHEET_SCORE = 0.4
_LIVE_BATCHES = 8
_CUT = "C4"


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """What the demo measured."""

    scores: CocoScores
    partial_scores: CocoScores  # with the last stage of the backbone trained too
    seconds: dict[str, float]  # by stage
    nbytes: int
    cached_epoch: float  # seconds per epoch on the cache
    partial_epoch: float  # with the last stage
    live_epoch: float  # seconds if the backbone ran in every step
    sheet: Path

    def to_json(self) -> dict[str, Any]:
        scores = {name: getattr(self, name).to_json() for name in ("scores", "partial_scores")}
        return {**vars(self), **scores, "sheet": str(self.sheet)}

    def summary(self) -> list[str]:
        """A few lines for a person."""
        stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        extraction = self.seconds["extract"]
        saved = self.live_epoch - self.cached_epoch
        pays = f"after {extraction / saved:.1f} epochs" if saved > 0 else "never on this machine"
        return [
            f"AP {self.scores.ap:.3f}, AP50 {self.scores.ap50:.3f} on {VAL_IMAGES} validation "
            "images",
            f"time: {stages}",
            f"cache: {self.nbytes / 1e6:.1f} MB; an epoch takes {self.cached_epoch:.1f} s from "
            f"the cache, {self.live_epoch:.1f} s with the live "
            f"frozen backbone ({self.live_epoch / self.cached_epoch:.1f} times as long); the cache "
            f"has paid for itself {pays}",
            f"the last stage of the backbone trained too, from the same cache (--set "
            f"freeze_at={_CUT}): AP {self.partial_scores.ap:.3f}, AP50 "
            f"{self.partial_scores.ap50:.3f}; an epoch takes {self.partial_epoch:.1f} s",
            f"ground truth beside prediction: {self.sheet}",
        ]


def run_demo(out: Path) -> DemoReport:
    """Generate, extract, train, score and draw into the folder `out`.

    Raises InputError where `out` exists and is not empty, or cannot be written.
    """
    require_empty_folder(out)
    seconds: dict[str, float] = {}
    with _timed(seconds, "draw images"):
        paths = write_shapes(out / "shapes", train=TRAIN_IMAGES, val=VAL_IMAGES)
    with _timed(seconds, "extract"):
        reports = [_extract(out, paths, split) for split in ("train", "val")]
    train_store, val_store = (Path(report.store) for report in reports)
    with _timed(seconds, "train"):
        config = demo_config()
        trained = train(config, train_store=train_store, val_store=val_store, run=out / "run")
    with _timed(seconds, "score and draw"):
        scored = evaluate(out / "run", store=val_store)
        joined = join_run(out / "run")
        sheet = _draw_sheet(out, val_store, paths, joined.on_images())
    with _timed(seconds, "train the last stage too"):
        cut = config.model_copy(update={"freeze_at": _CUT})
        partial = train(cut, train_store=train_store, val_store=val_store, run=out / "run-partial")
        partial_scored = evaluate(out / "run-partial", store=val_store)
    live = _live_backbone_seconds(train_store, paths, joined.backbone, config)
    return DemoReport(
        scores=scored.scores,
        partial_scores=partial_scored.scores,
        seconds=seconds,
        nbytes=sum(report.nbytes_written for report in reports),
        cached_epoch=trained.seconds_per_epoch,
        partial_epoch=partial.seconds_per_epoch,
        live_epoch=trained.seconds_per_epoch + live,
        sheet=sheet,
    )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def demo_config() -> TrainConfig:
    """The demo's training run, shipped inside the package."""
    return load_train_config(Path(__file__).with_name("demo.yaml"))


def _extract(out: Path, paths: ShapesPaths, split: str) -> ExtractReport:
    return extract(
        ExtractConfig(
            images=paths.images,
            annotations=paths.train if split == "train" else paths.val,
            store=out / f"{split}.zarr",
            image_size=_IMAGE_SIZE,
            views="base,hflip" if split == "train" else "base",
            workers=default_workers(),
        )
    )


def _live_backbone_seconds(
    store_path: Path, paths: ShapesPaths, backbone: FrozenBackbone, config: TrainConfig
) -> float:
    """Seconds an epoch would take longer if images were decoded and forwarded in each step."""
    store = FeatureStore.open(store_path)
    inputs, device = inputs_of(store, paths.images), next(backbone.parameters()).device
    batch_size = config.schedule.batch_size
    plan = [keys for keys in make_planner(config, store).plan(0) if len(keys) == batch_size]
    measured = plan[: _LIVE_BATCHES + 1]
    started = time.perf_counter()
    for number, keys in enumerate(measured):
        if number == 1:  # the first one warms up
            started = time.perf_counter()
        images = [inputs.load(int(row), "base") for _, row in keys]
        for level in backbone(torch.stack(images).to(device)).values():
            level.cpu()
    count = sum(len(keys) for keys in measured[1:])
    return (time.perf_counter() - started) / count * len(store)


def _draw_sheet(out: Path, val_store: Path, paths: ShapesPaths, detector: ImageDetector) -> Path:
    """Ground truth beside what `predict` finds in the image files."""
    annotations = FeatureStore.open(val_store).annotations
    categories = annotations.categories
    rows = []
    for row, name in enumerate(annotations.file_names[:_SHEET_IMAGES]):
        pixels = decode_image(paths.images / name)
        detections = detector(pixels, image_id=int(annotations.image_ids[row]))
        prediction = make_drawing(
            detections.above(_SHEET_SCORE), categories, size_hw=annotations.size_of(row)
        )
        boxes = annotations.boxes_of(row)
        labels = annotations.labels[boxes]
        ground_truth = Drawing(
            boxes=annotations.boxes[boxes],
            labels=labels,
            captions=tuple(categories.names[label] for label in labels),
        )
        rows.append(
            SheetRow(name=name, pixels=pixels, annotations=ground_truth, prediction=prediction)
        )
    sheet = out / "ground_truth_and_prediction.png"
    contact_sheet(rows, sheet)
    return sheet

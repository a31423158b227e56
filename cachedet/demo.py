"""The pipeline from images to scores: one cache, heads trained in three ways, and a page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachedet.compare import ComparisonReport, OnCell, compare
from cachedet.comparison.cautions import Caution
from cachedet.comparison.cell import ComparisonConfig
from cachedet.comparison.folder import ComparisonFolder
from cachedet.comparison.results import CellResult
from cachedet.config.run import ExtractConfig, TrainConfig, load_train_config
from cachedet.data.images import decode_image
from cachedet.data.shapes import ShapesPaths, write_shapes
from cachedet.device import default_workers
from cachedet.drawing.contact_sheet import SheetRow, contact_sheet
from cachedet.drawing.image_drawing import Drawing, make_drawing
from cachedet.errors import InputError
from cachedet.live.mode_names import mode_label, partial_mode
from cachedet.outputs import require_empty_folder
from cachedet.prediction.image_detector import ImageDetector, join_run
from cachedet.report import report
from cachedet.store.reader import FeatureStore

MODES = ("cached", partial_mode("C4"), "tuned")
TRAIN_IMAGES = 200
VAL_IMAGES = 96
_HEADS = "demo"  # name of the config
_IMAGE_SIZE = 320
_SHEET_IMAGES = 12
_SHEET_SCORE = 0.3


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """What the demo measured."""

    cells: tuple[CellResult, ...]  # in the order of MODES
    train_images: int
    val_images: int
    boxes: int  # to learn from
    seconds: dict[str, float]  # by stage
    sheet: Path
    page: Path
    comparison: Path
    cautions: tuple[Caution, ...] = ()  # why it may be too early to believe

    def to_json(self) -> dict[str, Any]:
        files = {name: str(getattr(self, name)) for name in ("sheet", "page", "comparison")}
        cautions = [vars(caution) for caution in self.cautions]
        cells = [cell.to_json() for cell in self.cells]
        return {**vars(self), **files, "cautions": cautions, "cells": cells}

    @property
    def conditions(self) -> str:
        """What was equal, in one line."""
        return (
            f"the same heads, start weights, order of images and {self.cells[0].epochs:.0f} epochs "
            "each, one seed; generated images (shapes to find), "
            f"{self.train_images} to train on with {self.boxes} boxes, "
            f"{self.val_images} to score on"
        )


def run_demo(out: Path, *, on_cell: OnCell | None = None) -> DemoReport:
    """Draw images, extract, train in three ways, score and draw into the folder `out`.

    Raises:
        InputError: `out` exists and is not empty, or cannot be written; or a run failed.
        KeyboardInterrupt: a signal came.
    """
    require_empty_folder(out)
    seconds: dict[str, float] = {}
    with _timed(seconds, "draw images"):
        paths = write_shapes(
            out / "shapes", train=TRAIN_IMAGES, val=VAL_IMAGES, workers=default_workers()
        )
    with _timed(seconds, "extract, train and score"):
        compared = compare(_comparison(out / "comparison", paths), on_cell=on_cell)
    cells = _require_whole(compared)
    folder = ComparisonFolder(compared.out)
    runs = [folder.cell(cell.key) for cell in cells]
    with _timed(seconds, "draw"):
        sheet = _draw_sheet(out, folder.val, paths, join_run(runs[0]).on_images())
        labels = tuple(map(mode_label, MODES))
        page = report(runs, names=labels, images=paths.images, out=out / "report.html")
    train, val = (FeatureStore.open(store).annotations for store in (folder.train, folder.val))
    return DemoReport(
        cells=cells,
        train_images=len(train),
        val_images=len(val),
        boxes=int((~train.crowd).sum()),
        seconds=seconds,
        sheet=sheet,
        page=page.html,
        comparison=compared.page,
        cautions=compared.cautions,
    )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def demo_config() -> TrainConfig:
    """The demo's training run, shipped inside the package."""
    return load_train_config(Path(__file__).with_name("demo.yaml"))


def _comparison(out: Path, paths: ShapesPaths) -> ComparisonConfig:
    folder = ComparisonFolder(out)
    train = ExtractConfig(
        images=paths.images,
        annotations=paths.train,
        store=folder.train,
        image_size=_IMAGE_SIZE,
        views="base,hflip",
        workers=default_workers(),
    )
    val = {"annotations": paths.val, "store": folder.val, "views": "base"}
    return ComparisonConfig(
        heads={_HEADS: demo_config()},
        train=train,
        val=train.model_copy(update=val),
        out=out,
        modes=MODES,
    )


def _require_whole(compared: ComparisonReport) -> tuple[CellResult, ...]:
    """All cells in the order of MODES."""
    if compared.interrupted_by is not None:
        raise KeyboardInterrupt(compared.interrupted_by)
    for cell in compared.summary.failed:
        raise InputError(f"the demo's run {cell.key.mode} failed: {cell.error}")
    return tuple(sorted(compared.cells, key=lambda cell: MODES.index(cell.key.mode)))


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

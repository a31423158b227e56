"""Scoring a cell: on cached features or on images, whichever its mode has."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from cachedet.comparison.results import BinFigure, ClassFigure
from cachedet.config.run import TrainConfig
from cachedet.detector.build import choose_levels
from cachedet.detector.end_to_end import EndToEndDetector
from cachedet.evaluation.analysis import Analysis, analyse
from cachedet.evaluation.detection_table import has_masks, tabulate
from cachedet.evaluation.inference import EVAL_VIEW, detect_batches, detect_store
from cachedet.evaluation.metrics import coco_results, score_detections
from cachedet.live.modes import image_batches
from cachedet.store.files.durable import encode_json, write_durably
from cachedet.store.reader import FeatureStore
from cachedet.structures import Detections
from cachedet.training.loop import Validator
from cachedet.training.run_folder import RunFolder, TrainingData
from cachedet.training.trainer import Trainer
from cachedet.version import __version__

_AT_ONCE = 8  # images


class Scorer:
    """Scores the detector of a trainer on validation images.

    Args:
        config: of the detector.
        store: of the validation images.
        images: folder of them.
        trainer: whose detector it is.
    """

    def __init__(
        self, config: TrainConfig, *, store: FeatureStore, images: Path, trainer: Trainer
    ) -> None:
        self._config = config
        self._store = store
        self._images = images
        self._trainer = trainer

    def validator(self) -> Validator:
        """For the training loop."""

        def score(detector: nn.Module, between_batches: Callable[[], None]) -> dict[str, float]:
            found = self._detect(detector, on_progress=lambda _: between_batches())
            scores = score_detections(self._store.annotations, found)
            return {"ap": scores.ap, "ap50": scores.ap50, "ap75": scores.ap75}

        return score

    def score(self, folder: RunFolder, trained_on: TrainingData, *, resamples: int) -> Analysis:
        """Of the weights as they are; writes results.json and detections.json as `eval` does."""
        annotations = self._store.annotations
        with self._trainer.scored_weights():
            detections = self._detect(self._trainer.detector)
        table = tabulate(annotations, detections, with_masks=has_masks(detections))
        analysis = analyse(annotations, table, counts=trained_on.boxes, resamples=resamples)
        values: dict[str, Any] = {
            **analysis.to_json(),
            "views": [EVAL_VIEW],
            "detections": str(folder.detections),
            "run": str(folder.root),
            "store": str(self._store.location),
            "training": trained_on.store,
            "step": self._trainer.step,
            "weights": "last",
            "store_fingerprint": self._store.manifest.fingerprint(),
            "evaluator": "cachedet, equal to pycocotools",
            "cachedet": __version__,
            "annotations": None,
            "against": None,
        }
        write_durably(folder.detections, json.dumps(coco_results(annotations, table)).encode())
        write_durably(folder.results, encode_json(values))
        return analysis

    def _detect(
        self, detector: nn.Module, *, on_progress: Callable[[int], None] | None = None
    ) -> list[Detections]:
        device = self._trainer.device
        if isinstance(detector, EndToEndDetector):
            return detect_batches(
                detector,
                self._store,
                batches=lambda view: image_batches(
                    self._store, images=self._images, view=view, batch_size=_AT_ONCE, device=device
                ),
                on_progress=on_progress,
            )
        return detect_store(
            detector,
            self._store,
            levels=choose_levels(self._config.detector, self._store.manifest.spec).names,
            batch_size=_AT_ONCE,
            device=device,
            on_progress=on_progress,
        )


def figures_of(analysis: Analysis) -> dict[str, Any]:
    """The fields of a CellResult that scoring knows."""
    scores, intervals = analysis.scores, analysis.intervals
    boxes = analysis.training_boxes or {}
    return {
        "ap": scores.ap,
        "ap50": scores.ap50,
        "ap75": scores.ap75,
        "low": math.nan if intervals is None else intervals.ap.low,
        "high": math.nan if intervals is None else intervals.ap.high,
        "classes": tuple(
            ClassFigure(name=own.name, boxes=boxes.get(own.category_id, 0), ap=own.ap)
            for own in scores.per_class
        ),
        "bins": tuple(
            BinFigure(name=own.name, classes=own.num_scored, ap=own.ap)
            for own in analysis.strata or ()
        ),
    }

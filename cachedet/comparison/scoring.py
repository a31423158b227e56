"""Scores of a cell: on cached features or on images, whichever its mode has."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cachedet.comparison.folder import ComparisonFolder
from cachedet.comparison.results import BinFigure, ClassFigure
from cachedet.comparison.summary import Comparison
from cachedet.config.run import VALIDATED, TrainConfig
from cachedet.detector.build import choose_read_levels
from cachedet.detector.end_to_end import EndToEndDetector
from cachedet.errors import InputError
from cachedet.evaluation.analysis import Analysis, analyse
from cachedet.evaluation.detection_table import has_masks, read_results, tabulate
from cachedet.evaluation.inference import EVAL_VIEW, detect_store, stored_batches
from cachedet.evaluation.metrics import coco_results, score_detections
from cachedet.evaluation.significance import ComparisonReport, compare_seeds
from cachedet.live.modes import image_batches
from cachedet.reporting.scored_run import TrainingPoint
from cachedet.store.files.durable import encode_json, write_durably
from cachedet.store.reader import FeatureStore
from cachedet.structures import Annotations, Detections
from cachedet.training.loop import Validator
from cachedet.training.run_folder import RunFolder, TrainingData, noted_place
from cachedet.training.trainer import Trainer
from cachedet.version import __version__

_BATCH_SIZE = 8
_LAST_QUARTER = 0.75  # of the steps: where it begins


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """Scores the detector of a trainer on validation images."""

    config: TrainConfig
    store: FeatureStore  # of the validation images
    images: Path  # folder of their files
    trainer: Trainer

    def validator(self) -> Validator:
        """Make what the training loop validates with."""

        def score(detector: nn.Module, between_batches: Callable[[], None]) -> dict[str, float]:
            detections = self._detect(detector, on_progress=lambda _: between_batches())
            scores = score_detections(self.store.annotations, detections)
            return {name: getattr(scores, name) for name in VALIDATED}

        return score

    def score(self, folder: RunFolder, trained_on: TrainingData, *, resamples: int) -> Analysis:
        """Score the weights as they are; writes results.json and detections.json as `eval` does."""
        annotations = self.store.annotations
        with self.trainer.scored_weights():
            detections = self._detect(self.trainer.detector)
        table = tabulate(annotations, detections, with_masks=has_masks(detections))
        analysis = analyse(annotations, table, counts=trained_on.boxes, resamples=resamples)
        values: dict[str, Any] = {
            **analysis.to_json(),
            "views": [EVAL_VIEW],
            "detections": str(folder.detections),
            "run": noted_place(folder.root),
            "store": noted_place(self.store.location),
            "training": trained_on.store,
            "step": self.trainer.step,
            "weights": "last",
            "store_fingerprint": self.store.manifest.fingerprint(),
            "truth_digest": self.store.manifest.truth_digest,
            "annotations": None,
            "against": None,
            "evaluator": "cachedet, equal to pycocotools",
            "cachedet": __version__,
        }
        write_durably(folder.detections, json.dumps(coco_results(annotations, table)).encode())
        write_durably(folder.results, encode_json(values))
        return analysis

    def _detect(
        self, detector: nn.Module, *, on_progress: Callable[[int], None] | None = None
    ) -> list[Detections]:
        device = self.trainer.device
        levels = choose_read_levels(self.config, self.store.manifest)
        batches = stored_batches(self.store, levels=levels, batch_size=_BATCH_SIZE, device=device)
        if isinstance(detector, EndToEndDetector) and self.config.freeze_at is None:
            return detect_store(
                detector,
                self.store,
                batches=lambda view: image_batches(
                    self.store, images=self.images, view=view, batch_size=_BATCH_SIZE, device=device
                ),
                on_progress=on_progress,
            )
        return detect_store(detector, self.store, batches=batches, on_progress=on_progress)


def late_rise(points: Sequence[TrainingPoint], *, steps: int, ap: float) -> float:
    """What AP gained in the last quarter of the `steps` of a run that ended with `ap`.

    Validations lie where they lie: between two of them AP is taken to rise evenly. NaN where none
    came before the end.
    """
    earlier = {p.step: p.val_ap for p in points if p.val_ap is not None and p.step < steps}
    if not earlier:
        return math.nan
    at, aps = zip(*sorted((earlier | {steps: ap}).items()), strict=True)
    return ap - float(np.interp(_LAST_QUARTER * steps, at, aps))


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
            ClassFigure(name=score.name, boxes=boxes.get(score.category_id, 0), ap=score.ap)
            for score in scores.per_class
        ),
        "bins": tuple(
            BinFigure(name=stratum.name, classes=stratum.num_scored, ap=stratum.ap)
            for stratum in analysis.strata or ()
        ),
    }


def compare_on_images(
    comparison: Comparison, *, folder: ComparisonFolder, annotations: Annotations, resamples: int
) -> ComparisonReport | None:
    """The first group against the second on the same resamples of images and seeds.

    None where detections of their cells are gone.
    """
    try:
        first, second = (
            [
                read_results(
                    RunFolder(folder.cell(group.of_seed(seed).key)).detections, annotations
                )
                for seed in comparison.seeds
            ]
            for group in (comparison.first, comparison.second)
        )
    except InputError:
        return None
    return compare_seeds(annotations, first, second, resamples=resamples)

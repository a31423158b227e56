"""Everything the page says about detections, computed once for each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cachedet.evaluation.analysis import Analysis, analyse
from cachedet.evaluation.confusion import ConfusionMatrix, confuse
from cachedet.evaluation.curves import Curves
from cachedet.evaluation.detection_table import DetectionTable
from cachedet.evaluation.error_kinds import DetectionKinds, ErrorReport, sort_errors
from cachedet.evaluation.metrics import CocoScores
from cachedet.evaluation.significance import BootstrapReport
from cachedet.evaluation.strata import Stratum
from cachedet.structures import Annotations


@dataclass(frozen=True, kw_only=True, eq=False)
class RunAnalysis:
    """What one run's detections tell."""

    told: Analysis
    intervals: BootstrapReport
    difference: BootstrapReport | None  # this run minus the first; None of the first itself
    kinds: DetectionKinds
    confusion: ConfusionMatrix  # above the score whose F1 is best
    class_images: tuple[int, ...]  # K, that hold the class (crowds aside)
    table: DetectionTable

    @property
    def scores(self) -> CocoScores:
        return self.told.scores

    @property
    def mask_scores(self) -> CocoScores | None:
        """Where detections and ground truth have masks."""
        return self.told.mask_scores

    @property
    def errors(self) -> ErrorReport:
        return self.told.errors

    @property
    def curves(self) -> Curves:
        return self.told.curves

    @property
    def strata(self) -> tuple[Stratum, ...] | None:
        """None: the run does not say what it was trained on."""
        return self.told.strata

    def to_json(self) -> dict[str, Any]:
        """What `eval` writes, with the intervals, the difference and the confusion matrix."""
        values = self.told.to_json()
        values.pop("comparison", None)
        return {
            **values,
            "intervals": self.intervals.to_json(),
            "difference_to_first": self.difference.to_json() if self.difference else None,
            "confusion": self.confusion.to_json(),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class RunInput:
    """One run's detections, and the boxes it learnt from by category id (None: not recorded)."""

    table: DetectionTable
    training_boxes: dict[int, int] | None


def analyse_runs(
    annotations: Annotations, inputs: Sequence[RunInput], *, resamples: int, seed: int
) -> tuple[RunAnalysis, ...]:
    """Analyse every run, and compare each with the first on the same resamples.

    Raises InputError where a class has no count in `training_boxes`.
    """
    first = inputs[0].table
    return tuple(
        _analyse(
            annotations, own, None if own.table is first else first, resamples=resamples, seed=seed
        )
        for own in inputs
    )


def _analyse(
    annotations: Annotations,
    own: RunInput,
    first: DetectionTable | None,
    *,
    resamples: int,
    seed: int,
) -> RunAnalysis:
    told = analyse(
        annotations,
        own.table,
        other=first,
        counts=own.training_boxes,
        resamples=resamples,
        seed=seed,
    )
    intervals = told.intervals if told.comparison is None else told.comparison.first
    if intervals is None:
        raise ValueError(f"a report needs resamples of the bootstrap, got {resamples}")
    cut = told.curves.best.score
    return RunAnalysis(
        told=told,
        intervals=intervals,
        difference=None if told.comparison is None else told.comparison.difference,
        kinds=sort_errors(annotations, own.table),
        confusion=confuse(annotations, own.table, min_score=0.0 if np.isnan(cut) else cut),
        class_images=_images_by_class(annotations),
        table=own.table,
    )


def _images_by_class(annotations: Annotations) -> tuple[int, ...]:
    rows = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    held = np.unique(np.stack([annotations.labels, rows])[:, ~annotations.crowd], axis=1)
    return tuple(np.bincount(held[0], minlength=len(annotations.categories)).tolist())

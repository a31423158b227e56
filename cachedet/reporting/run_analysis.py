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
from cachedet.structures import Annotations


@dataclass(frozen=True, kw_only=True, eq=False)
class RunAnalysis:
    """What one run's detections tell."""

    name: str  # what the page calls the run
    analysis: Analysis
    intervals: BootstrapReport
    difference: BootstrapReport | None  # this run minus the first; None of the first itself
    kinds: DetectionKinds
    confusion: ConfusionMatrix  # above the score whose F1 is best
    class_images: tuple[int, ...]  # K, that hold the class (crowds aside)
    table: DetectionTable

    @property
    def scores(self) -> CocoScores:
        return self.analysis.scores

    @property
    def errors(self) -> ErrorReport:
        return self.analysis.errors

    @property
    def curves(self) -> Curves:
        return self.analysis.curves

    def to_json(self) -> dict[str, Any]:
        """What `eval` writes, with the intervals, the difference and the confusion matrix."""
        values = self.analysis.to_json()
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

    name: str
    table: DetectionTable
    training_boxes: dict[int, int] | None


def analyse_runs(
    annotations: Annotations, inputs: Sequence[RunInput], *, resamples: int, seed: int
) -> tuple[RunAnalysis, ...]:
    """Analyse every run, and compare each with the first on the same resamples.

    Raises InputError where a class has no count in `training_boxes`.
    """
    rows = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    pairs = np.unique(np.stack([annotations.labels, rows])[:, ~annotations.crowd], axis=1)
    class_images = np.bincount(pairs[0], minlength=len(annotations.categories)).tolist()
    runs = []
    for given in inputs:
        analysis = analyse(
            annotations,
            given.table,
            other=None if given is inputs[0] else inputs[0].table,
            counts=given.training_boxes,
            resamples=resamples,
            seed=seed,
        )
        comparison = analysis.comparison
        intervals = analysis.intervals if comparison is None else comparison.first
        if intervals is None:
            raise ValueError(f"a report needs resamples of the bootstrap, got {resamples}")
        cut = analysis.curves.best.score
        runs.append(
            RunAnalysis(
                name=given.name,
                analysis=analysis,
                intervals=intervals,
                difference=None if comparison is None else comparison.difference,
                kinds=sort_errors(annotations, given.table),
                confusion=confuse(
                    annotations, given.table, min_score=0.0 if np.isnan(cut) else cut
                ),
                class_images=tuple(class_images),
                table=given.table,
            )
        )
    return tuple(runs)

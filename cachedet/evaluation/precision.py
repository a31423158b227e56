"""From matches to precision at the 101 recalls of COCO.

Letters: A area ranges, T IoU thresholds, R recalls, K classes, D detections, B weightings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cachedet.evaluation.matches import MatchTable

Floats = NDArray[np.float64]
RECALLS: Floats = np.linspace(0.0, 1.0, 101)
ABSENT = -1.0  # of a class without boxes that count, as in pycocotools
_TINY = np.spacing(1)  # pycocotools' guard against 0 / 0, which it adds to every denominator


@dataclass(frozen=True, kw_only=True, eq=False)
class PrecisionTable:
    """What pycocotools calls `eval`; -1 where a class has no box that counts."""

    precision: Floats  # (T, R, K, A)
    recall: Floats  # (T, K, A)

    def mean_precision(
        self,
        *,
        area: int = 0,
        threshold: int | None = None,
        labels: Sequence[int] | None = None,
    ) -> float:
        """Over all thresholds or one, all classes or some; NaN where none has boxes."""
        part = self.precision if threshold is None else self.precision[[threshold]]
        part = part[:, :, slice(None) if labels is None else list(labels), area]
        return mean_known(part)

    def mean_recall(self, *, area: int = 0) -> float:
        """Over thresholds and classes; NaN where no class has boxes."""
        return mean_known(self.recall[:, :, area])


def mean_known(values: Floats) -> float:
    """Mean of those that are not -1; NaN where there are none."""
    known = values[values > ABSENT]
    return float(known.mean()) if known.size else math.nan


def accumulate(matches: MatchTable, *, most_per_class: int | None = None) -> PrecisionTable:
    """Precision and recall of each class, of its best `most_per_class` a picture or all."""
    areas, thresholds = len(matches.areas), len(matches.iou_thresholds)
    shape = (thresholds, len(RECALLS), matches.num_classes, areas)
    precision = np.full(shape, ABSENT)
    recall = np.full((thresholds, matches.num_classes, areas), ABSENT)
    counts = count_truths(matches)
    for label in range(matches.num_classes):
        span = matches.of_class(label)
        taken = np.arange(span.start, span.stop)
        if most_per_class is not None:
            taken = taken[matches.ranks[taken] < most_per_class]
        for area in np.flatnonzero(counts[:, label]).tolist():
            judged = ~matches.ignored[area][:, taken]
            right = matches.matched[area][:, taken] & judged
            curve, last = interpolate(right, judged & ~right, int(counts[area, label]))
            precision[:, :, label, area] = curve
            recall[:, label, area] = last
    return PrecisionTable(precision=precision, recall=recall)


def count_truths(matches: MatchTable) -> NDArray[np.int64]:
    """(A, K) boxes that count."""
    return np.stack(
        [
            np.bincount(matches.truth_labels[~ignored], minlength=matches.num_classes)
            for ignored in matches.truth_ignored
        ]
    )


def interpolate(
    right: NDArray[np.bool_], wrong: NDArray[np.bool_], num_truths: int
) -> tuple[Floats, Floats]:
    """Flags (T, D) by falling score -> precision at RECALLS (T, R) and the last recall (T,).

    The precision at a recall is the best at that or a higher one; 0 where it is never reached.
    """
    recall, precision = raw_curve(right, wrong, num_truths)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    envelope = np.pad(envelope, ((0, 0), (0, 1)))  # the zero of recalls beyond the last
    at = np.stack([np.searchsorted(own, RECALLS, side="left") for own in recall])
    last = recall[:, -1] if recall.shape[1] else np.zeros(len(recall))
    return np.take_along_axis(envelope, at, axis=1), last


def raw_curve(
    right: NDArray[np.bool_], wrong: NDArray[np.bool_], num_truths: int
) -> tuple[Floats, Floats]:
    """Recall and precision (T, D) down to each detection."""
    hits = np.cumsum(right, axis=1, dtype=np.float64)
    alarms = np.cumsum(wrong, axis=1, dtype=np.float64)
    return hits / num_truths, hits / (alarms + hits + _TINY)

"""Precision against recall, the score to cut at, and whether scores mean what they say.

All at IoU 0.5, boxes of all sizes, detections in crowds left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.evaluation.detection_table import DetectionsOrTable, tabulate
from cachedet.evaluation.matches import HALF, MatchTable, match_detections
from cachedet.evaluation.precision import RECALLS, TINY, to_json_values
from cachedet.structures import Annotations

_BINS = 10  # of scores, for calibration


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Keeping detections with `score` or more; NaN where there are no boxes or no detections."""

    score: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class ClassCurve:
    """Precision of a class at recalls 0, 0.01, ..., 1, and where its F1 is best."""

    name: str
    category_id: int
    ap: float  # mean of `precision`; NaN without boxes
    precision: tuple[float, ...]  # 101; empty without boxes
    best: Cut


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """Detections with `low` <= score < `high` (the last: <=); NaN where there are none."""

    low: float
    high: float
    count: int
    mean_score: float
    precision: float


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Curves of each class, the best cut of all classes together, and calibration."""

    per_class: tuple[ClassCurve, ...]
    best: Cut
    calibration: tuple[CalibrationBin, ...]
    calibration_error: float  # mean |score - precision| of the bins, by count; NaN: no detections

    def to_json(self) -> dict[str, Any]:
        return {"iou": HALF[0].item(), "recall": RECALLS.tolist(), **to_json_values(self)}


def draw_curves(annotations: Annotations, detections: DetectionsOrTable) -> Curves:
    """Curves, cuts and calibration. Raises InputError as `tabulate`."""
    table = tabulate(annotations, detections)
    matches = match_detections(annotations, table, iou_thresholds=HALF)
    judged, counts = matches.judged[0], matches.count_gt()
    right = matches.right[0][judged]
    scores = matches.scores[judged]
    bins, error = _calibrate(scores, right)
    order = np.argsort(-scores, kind="stable")
    return Curves(
        per_class=tuple(
            _curve(annotations, matches, label, int(num_gt)) for label, num_gt in enumerate(counts)
        ),
        best=_best_cut(scores[order], right[order], int(counts.sum())),
        calibration=bins,
        calibration_error=error,
    )


def _curve(annotations: Annotations, matches: MatchTable, label: int, num_gt: int) -> ClassCurve:
    span = matches.of_class(label)
    judged = matches.judged[0, span]
    precision = tuple(matches.precision[0, :, label].tolist()) if num_gt else ()
    return ClassCurve(
        name=annotations.categories.names[label],
        category_id=annotations.categories.ids[label],
        ap=float(np.mean(precision)) if precision else math.nan,
        precision=precision,
        best=_best_cut(matches.scores[span][judged], matches.right[0, span][judged], num_gt),
    )


def _best_cut(scores: NDArray[np.float64], right: NDArray[np.bool_], num_gt: int) -> Cut:
    """The best cut of falling scores; it keeps all detections of a score or none."""
    if not num_gt or not len(scores):
        return Cut(score=math.nan, precision=math.nan, recall=math.nan, f1=math.nan)
    hits, kept = np.cumsum(right), np.arange(1, len(right) + 1)
    last = np.append(scores[:-1] != scores[1:], True)
    f1 = 2 * hits / (kept + num_gt)
    best = int(np.argmax(np.where(last, f1, -1.0)))
    return Cut(
        score=float(scores[best]),
        precision=float(hits[best] / (kept[best] + TINY)),
        recall=float(hits[best] / num_gt),
        f1=float(f1[best]),
    )


def _calibrate(
    scores: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[tuple[CalibrationBin, ...], float]:
    """Guo et al., arXiv 1706.04599, section 2; scores outside 0..1 fall into the outer bins."""
    edges = np.linspace(0.0, 1.0, _BINS + 1)
    indices = np.searchsorted(edges[1:-1], scores, side="right")
    counts = np.bincount(indices, minlength=_BINS)
    with np.errstate(invalid="ignore"):  # empty bins are NaN
        mean_score = np.bincount(indices, weights=scores, minlength=_BINS) / counts
        precision = np.bincount(indices, weights=right, minlength=_BINS) / counts
    bins = tuple(
        CalibrationBin(
            low=float(edges[n]),
            high=float(edges[n + 1]),
            count=int(counts[n]),
            mean_score=float(mean_score[n]),
            precision=float(precision[n]),
        )
        for n in range(_BINS)
    )
    if not len(scores):
        return bins, math.nan
    gaps = np.abs(mean_score - precision)[counts > 0] * counts[counts > 0]
    return bins, float(gaps.sum() / len(scores))

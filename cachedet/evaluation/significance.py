"""Intervals: how far AP would move with other images of the same kind: the bootstrap over images.

Detections are matched once; a resample only weighs images by how often they were drawn, so
1,000 resamples of a small set take seconds. Efron & Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13 (percentile intervals).

Letters: B resamples, N images, K classes, T IoU thresholds, D detections.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.evaluation.detection_table import DetectionsOrTable, tabulate
from cachedet.evaluation.matches import MatchTable, match_detections
from cachedet.evaluation.metrics import Floats, Ints
from cachedet.evaluation.precision import RECALLS, TINY, to_json_values
from cachedet.progress import StageProgress
from cachedet.structures import Annotations

Weights = NDArray[np.int32]
Progress = Callable[[int], None]

CONFIDENCE = 0.95
_VALUES_AT_ONCE = 4_000_000  # bounds the working memory: about 40 bytes each
_NEXT_RECALL = np.append(RECALLS[1:], np.inf)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure on the images as they are, and where CONFIDENCE of the resamples lie."""

    value: float
    low: float
    high: float
    share_above_zero: float  # of the resamples; for a difference: how surely it is a gain

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is surely one."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True)
class BootstrapReport:
    """Intervals of AP, AP50 and each class's AP (label order)."""

    ap: Interval
    ap50: Interval
    per_class: tuple[Interval, ...]
    resamples: int
    confidence: float = CONFIDENCE
    num_images: int

    def to_json(self) -> dict[str, Any]:
        return to_json_values(self)


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    """Two runs on the same images; `difference` is the first minus the second, paired."""

    first: BootstrapReport
    second: BootstrapReport
    difference: BootstrapReport

    @property
    def tells_apart(self) -> bool:
        """Whether AP differs surely; one image alone, drawn again and again, tells nothing."""
        return self.difference.num_images > 1 and self.difference.ap.excludes_zero

    def to_json(self) -> dict[str, Any]:
        return {**to_json_values(self), "tells_apart": self.tells_apart}


def bootstrap(
    annotations: Annotations,
    detections: DetectionsOrTable,
    *,
    resamples: int = 1000,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> BootstrapReport:
    """Intervals of one run; `on_progress` is called with 1 for each class done."""
    weights = draw_images(len(annotations), resamples=resamples, seed=seed)
    values = _values(annotations, detections, weights, on_progress)
    return _summarise(values, num_images=len(annotations))


def compare_runs(
    annotations: Annotations,
    first: DetectionsOrTable,
    second: DetectionsOrTable,
    *,
    resamples: int = 1000,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> ComparisonReport:
    """Intervals of two runs and of their difference on the same resamples of the same images.

    `on_progress` and errors as in `bootstrap`; the classes of both runs count.
    """
    weights = draw_images(len(annotations), resamples=resamples, seed=seed)
    one, other = (_values(annotations, run, weights, on_progress) for run in (first, second))
    reports = [
        _summarise(values, num_images=len(annotations)) for values in (one, other, one.minus(other))
    ]
    return ComparisonReport(first=reports[0], second=reports[1], difference=reports[2])


def compare_seeds(
    annotations: Annotations,
    first: Sequence[DetectionsOrTable],
    second: Sequence[DetectionsOrTable],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> ComparisonReport:
    """Intervals of the mean of several runs, of the mean of others, and of their difference.

    Each resample draws images, the same for all, and runs of either side, with replacement: the
    intervals are as wide as images and seeds make them. A progress line shows that it works.
    """
    weights = draw_images(len(annotations), resamples=resamples, seed=seed)
    rng = np.random.default_rng([seed, 1])
    total = (len(first) + len(second)) * len(annotations.categories)
    with StageProgress("resample", total=total, unit="classes") as progress:
        sides = [
            [_values(annotations, run, weights, progress.advance) for run in runs]
            for runs in (first, second)
        ]
    one, other = (_mean_of_drawn(each, rng) for each in sides)
    reports = [
        _summarise(values, num_images=len(annotations)) for values in (one, other, one.minus(other))
    ]
    return ComparisonReport(first=reports[0], second=reports[1], difference=reports[2])


def _mean_of_drawn(runs: Sequence[WeightedAP], rng: np.random.Generator) -> WeightedAP:
    """Of as many runs as there are, drawn anew for each resample; row 0: each once."""
    count, rows = len(runs), np.arange(len(runs[0].ap))
    drawn = rng.integers(count, size=(count, len(rows)))
    drawn[:, 0] = np.arange(count)
    stacked = {name: np.stack([vars(run)[name] for run in runs]) for name in vars(runs[0])}
    return WeightedAP(**{name: of[drawn, rows].mean(axis=0) for name, of in stacked.items()})


def draw_images(num_images: int, *, resamples: int, seed: int) -> Weights:
    """(B, N) how often each image is in a resample of N drawn with replacement."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_images, [1 / num_images] * num_images, size=resamples)
    return drawn.astype(np.int32)


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightedAP:
    """COCO's AP where image n counts `weights[b, n]` times; NaN where no class has boxes."""

    ap: Floats  # (B,)
    ap50: Floats  # (B,)
    per_class: Floats  # (B, K)

    def minus(self, other: WeightedAP) -> WeightedAP:
        theirs = vars(other)
        return WeightedAP(**{name: value - theirs[name] for name, value in vars(self).items()})


def weighted_ap(
    matches: MatchTable, weights: Weights, *, on_progress: Progress | None = None
) -> WeightedAP:
    """AP of boxes of all sizes for each row of weights (B, N), whole numbers from 0.

    Equals the AP of a data set in which each image stands as often as its weight.
    """
    count, classes = len(weights), matches.num_classes
    of_image = np.ascontiguousarray(weights.T, dtype=np.int32)  # (N, B): whole lines are added
    per_threshold = np.full((len(matches.right), classes, count), np.nan)
    for label in range(classes):
        counted = ~matches.gt_ignored & (matches.gt_labels == label)
        num_gt = weights @ np.bincount(matches.gt_rows[counted], minlength=matches.num_images)
        known = np.flatnonzero(num_gt)
        span = matches.of_class(label)
        step = max(_VALUES_AT_ONCE // max(int(matches.right[:, span].sum(axis=1).max()), 1), 1)
        for start in range(0, len(known), step):
            part = known[start : start + step]
            drawn = of_image if len(part) == count else of_image[:, part]
            per_threshold[:, label, part] = _of_class(matches, span, drawn, num_gt[part])
        if on_progress is not None:
            on_progress(1)
    per_class = per_threshold.mean(axis=0)
    return WeightedAP(
        ap=_mean_of_known(per_class), ap50=_mean_of_known(per_threshold[0]), per_class=per_class.T
    )


def _of_class(matches: MatchTable, span: slice, weights: Weights, num_gt: Ints) -> Floats:
    """(T, B) AP of one class by weights (N, B).

    Precision only matters where recall grows: a right detection is worth the recalls it reaches
    first, at the best precision from there on.
    """
    rows, judged, right = matches.rows[span], matches.judged[:, span], matches.right[:, span]
    found = np.flatnonzero(right.any(axis=0))
    ap = np.zeros((len(right), weights.shape[1]))
    so_far: tuple[NDArray[np.bool_], Floats] | None = None
    for threshold, (judged_at, right_at) in enumerate(zip(judged, right, strict=True)):
        at = np.flatnonzero(right_at)
        if not len(at):
            continue
        if so_far is None or not np.array_equal(so_far[0], judged_at):
            so_far = judged_at, _sum_down_to(found, weights, np.where(judged_at, rows, -1))
        hits = _sum_down_to(np.arange(len(at)), weights, rows[at])
        precision = hits / (so_far[1][np.searchsorted(found, at)] + TINY)
        envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        # recall 0 is reached by anything, even if the first right ones are of images not drawn
        newly = np.diff(_count_reached(hits / num_gt), axis=0, prepend=0)
        ap[threshold] = (envelope * newly).sum(axis=0) / len(RECALLS)
    return ap


def _sum_down_to(ends: Ints, weights: Weights, rows: Ints) -> Floats:
    """(n, B) sums of the weights of rows (-1: none) down to each end, itself included.

    Line by line: NumPy's cumsum down the columns takes ten times as long.
    """
    sums = np.zeros((len(ends), weights.shape[1]))
    total = np.zeros(weights.shape[1], dtype=np.int64)
    start = 0
    for number, end in enumerate(ends.tolist()):
        part = rows[start : end + 1]
        total += weights[part[part >= 0]].sum(axis=0)
        sums[number] = total
        start = end + 1
    return sums


def _count_reached(recall: Floats) -> Ints:
    """How many of RECALLS are at most so much: `searchsorted`, but they are evenly spaced."""
    last = (recall * (len(RECALLS) - 1)).astype(np.int64)
    last += _NEXT_RECALL[last] <= recall
    last -= RECALLS[last] > recall
    return last + 1


def _values(
    annotations: Annotations,
    detections: DetectionsOrTable,
    weights: Weights,
    on_progress: Progress | None,
) -> WeightedAP:
    """Row 0: the images as they are."""
    matches = match_detections(annotations, tabulate(annotations, detections))
    once = np.ones((1, len(annotations)), dtype=weights.dtype)
    return weighted_ap(matches, np.concatenate([once, weights]), on_progress=on_progress)


def _summarise(values: WeightedAP, *, num_images: int) -> BootstrapReport:
    return BootstrapReport(
        ap=_interval(values.ap),
        ap50=_interval(values.ap50),
        per_class=tuple(map(_interval, values.per_class.T)),
        resamples=len(values.ap) - 1,
        num_images=num_images,
    )


def _interval(values: Floats) -> Interval:
    """The interval of those resamples that hold the class at all."""
    resampled = values[1:][~np.isnan(values[1:])]
    low = high = share = math.nan
    if len(resampled):
        ends = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        low, high, share = float(ends[0]), float(ends[1]), float((resampled > 0).mean())
    return Interval(value=float(values[0]), low=low, high=high, share_above_zero=share)


def _mean_of_known(per_class: Floats) -> Floats:
    """(B,) means over classes (K, B) that are not NaN."""
    counts = (~np.isnan(per_class)).sum(axis=0)
    total = np.nansum(per_class, axis=0)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)

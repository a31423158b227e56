"""Precision and recall of matches: at the 101 recalls of COCO, and of proposals without classes.

Letters: A area ranges, T IoU thresholds, R recalls, K classes, D detections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cachedet.evaluation.detection_table import DetectionsOrTable, tabulate
from cachedet.evaluation.matches import AREAS, MatchTable, match_detections
from cachedet.structures import Annotations, CategoryMap

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Floats = NDArray[np.float64]
RECALLS: Floats = np.linspace(0.0, 1.0, 101)
ABSENT = -1.0  # of a class without boxes that count, as in pycocotools
DEFAULT_LIMITS = (10, 100, 300, 1000)  # proposals of an image
_TINY = np.spacing(1)  # pycocotools' guard against 0 / 0, which it adds to every denominator


@dataclass(frozen=True, kw_only=True, eq=False)
class PrecisionTable:
    """What pycocotools calls `eval`; -1 where a class has no box that counts."""

    precision: Floats  # (T, R, K, A)
    recall: Floats  # (T, K, A)

    def mean_precision(
        self, *, area: int = 0, threshold: int | None = None, labels: Sequence[int] | None = None
    ) -> float:
        """Over all thresholds or one, all classes or some; NaN where none has boxes."""
        part = self.precision if threshold is None else self.precision[[threshold]]
        part = part[:, :, slice(None) if labels is None else list(labels), area]
        return mean_known(part)

    def mean_recall(self, *, area: int = 0) -> float:
        """Over thresholds and classes; NaN where no class has boxes."""
        return mean_known(self.recall[:, :, area])

    def by_area(self) -> dict[str, float]:
        """ap_small to ar_large; the areas are COCO's."""
        return {
            f"{kind}_{area}": mean(area=index)
            for kind, mean in (("ap", self.mean_precision), ("ar", self.mean_recall))
            for index, area in enumerate(AREAS)
            if area != "all"
        }


def mean_known(values: Floats) -> float:
    """Mean of those that are not -1; NaN where there are none."""
    known = values[values > ABSENT]
    return float(known.mean()) if known.size else math.nan


def accumulate(matches: MatchTable, *, most_per_class: int | None = None) -> PrecisionTable:
    """Precision and recall of each class, of its best `most_per_class` an image or all."""
    areas, thresholds = len(matches.areas), len(matches.iou_thresholds)
    shape = (thresholds, len(RECALLS), matches.num_classes, areas)
    precision = np.full(shape, ABSENT)
    recall = np.full((thresholds, matches.num_classes, areas), ABSENT)
    counts = count_gt(matches)
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


def count_gt(matches: MatchTable) -> NDArray[np.int64]:
    """(A, K) boxes that count."""
    return np.stack(
        [
            np.bincount(matches.gt_labels[~ignored], minlength=matches.num_classes)
            for ignored in matches.gt_ignored
        ]
    )


def interpolate(
    right: NDArray[np.bool_], wrong: NDArray[np.bool_], num_gt: int
) -> tuple[Floats, Floats]:
    """Flags (T, D) by falling score -> precision at RECALLS (T, R) and the last recall (T,).

    The precision at a recall is the best at that or a higher one; 0 where it is never reached.
    """
    recall, precision = raw_curve(right, wrong, num_gt)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    envelope = np.pad(envelope, ((0, 0), (0, 1)))  # the zero of recalls beyond the last
    at = np.stack([np.searchsorted(curve, RECALLS, side="left") for curve in recall])
    last = recall[:, -1] if recall.shape[1] else np.zeros(len(recall))
    return np.take_along_axis(envelope, at, axis=1), last


def raw_curve(
    right: NDArray[np.bool_], wrong: NDArray[np.bool_], num_gt: int
) -> tuple[Floats, Floats]:
    """Recall and precision (T, D) down to each detection."""
    hits = np.cumsum(right, axis=1, dtype=np.float64)
    alarms = np.cumsum(wrong, axis=1, dtype=np.float64)
    return hits / num_gt, hits / (alarms + hits + _TINY)


def to_json_values(record: DataclassInstance) -> dict[str, Any]:
    """Fields of a dataclass as JSON values; null instead of NaN."""
    values: dict[str, Any] = nan_to_null(asdict(record))
    return values


def nan_to_null(values: Any) -> Any:
    """Values, dicts and lists of them for JSON: null (None) stands for NaN, nothing to score."""
    if isinstance(values, dict):
        return {name: nan_to_null(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [nan_to_null(value) for value in values]
    return None if isinstance(values, float) and math.isnan(values) else values


@dataclass(frozen=True, kw_only=True)
class ProposalRecall:
    """Recall of the best `limit` proposals of each image, mean over IoU 0.5 to 0.95.

    NaN where there are no boxes.
    """

    limit: int
    ar: float
    ar_small: float
    ar_medium: float
    ar_large: float
    recall50: float  # at IoU 0.5 only
    recall75: float


@dataclass(frozen=True, kw_only=True)
class ProposalReport:
    """Recall of a detector's proposals at rising limits; beyond the detector's it stays."""

    most_per_image: int  # that the detector keeps
    at_limits: tuple[ProposalRecall, ...]

    def to_json(self) -> dict[str, Any]:
        return to_json_values(self)


def proposal_recall(
    annotations: Annotations,
    proposals: DetectionsOrTable,
    *,
    limits: Sequence[int] = DEFAULT_LIMITS,
) -> tuple[ProposalRecall, ...]:
    """Recall at each limit; scores are objectness, labels of proposals are not looked at.

    Raises InputError as `tabulate`, ValueError on a limit below 1.
    """
    if not limits or min(limits) < 1:
        raise ValueError(f"expected limits of at least 1 proposal an image, got {list(limits)}")
    table = tabulate(annotations, proposals)
    table = replace(table, labels=np.zeros_like(table.labels))
    matches = match_detections(_without_classes(annotations), table, most_per_class=max(limits))
    return tuple(_at_limit(matches, limit) for limit in sorted(limits))


def _without_classes(annotations: Annotations) -> Annotations:
    """One class; boxes class by class in each image, as COCO lists them."""
    rows = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    order = np.lexsort((annotations.labels, rows))
    return replace(
        annotations,
        boxes=annotations.boxes[order],
        labels=np.zeros_like(annotations.labels),
        crowd=annotations.crowd[order],
        areas=annotations.areas[order],
        categories=CategoryMap(ids=(0,), names=("object",)),
        sides_wh=annotations.sides_wh[order] if annotations.sides_wh is not None else None,
        masks=None,
    )


def _at_limit(matches: MatchTable, limit: int) -> ProposalRecall:
    counts = count_gt(matches)[:, 0]
    within = matches.ranks < limit
    hits = (matches.matched & ~matches.ignored & within).sum(axis=2)  # (A, T)
    recall = np.where(counts[:, None] > 0, hits / np.maximum(counts, 1)[:, None], np.nan)
    return ProposalRecall(
        limit=limit,
        ar=float(recall[0].mean()),
        **{f"ar_{name}": float(recall[n].mean()) for n, name in enumerate(AREAS) if n},
        recall50=float(recall[0, matches.threshold(0.5)]),
        recall75=float(recall[0, matches.threshold(0.75)]),
    )

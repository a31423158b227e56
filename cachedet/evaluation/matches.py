"""Matches of detections and boxes: COCO's greedy matching of all images at once.

Letters: D detections, M ground-truth boxes, A area ranges, T IoU thresholds, K classes,
P candidate pairs (a detection and a box of its image and class that overlap enough),
n detections that are matched in one round, C candidates of a detection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cachedet.evaluation.detection_table import DetectionTable
from cachedet.evaluation.overlaps import box_areas, candidate_pairs, mask_areas
from cachedet.structures import Annotations

Kind = Literal["bbox", "segm"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

IOU_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
AREAS: Mapping[str, tuple[float, float]] = {  # square pixels, both ends included (COCO)
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
ALL_SIZES: Mapping[str, tuple[float, float]] = {"all": AREAS["all"]}
MOST_PER_CLASS = 100  # detections of a class in an image that COCO looks at

_PAIRS_AT_ONCE = 100_000  # bounds the working memory of a round: A x T x 6 bytes a pair


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchTable:
    """What became of every detection and box, at each area range and IoU threshold.

    Detections stand class by class, best score first; equal scores in the order of image ids, then
    as they came (pycocotools' order). About 2 A T + 4 T + 40 bytes a detection.
    """

    iou_thresholds: Floats  # (T,)
    areas: tuple[str, ...]  # A names
    num_classes: int
    num_images: int
    source: Ints  # (D,) number in the detection table
    rows: Ints  # (D,) image
    labels: Ints  # (D,) ascending
    scores: Floats  # (D,)
    ranks: Ints  # (D,) 0: the best of its class in its image
    matched: Flags  # (A, T, D)
    ignored: Flags  # (A, T, D) neither right nor wrong
    partner: NDArray[np.int32]  # (T, D) matched box in the first area range, -1: none
    gt_rows: Ints  # (M,)
    gt_labels: Ints  # (M,)
    gt_ignored: Flags  # (A, M) crowds and boxes of other sizes

    def of_class(self, label: int) -> slice:
        """The class's detections."""
        first, last = np.searchsorted(self.labels, [label, label + 1])
        return slice(int(first), int(last))

    def threshold(self, iou: float) -> int:
        """Index of an IoU threshold. Raises ValueError where it was not matched at."""
        indices = np.flatnonzero(np.isclose(self.iou_thresholds, iou, rtol=0, atol=1e-9))
        if not len(indices):
            raise ValueError(f"matched at IoU {self.iou_thresholds.tolist()}, asked for {iou}")
        return int(indices[0])


def match_detections(
    annotations: Annotations,
    table: DetectionTable,
    *,
    iou_thresholds: Floats = IOU_THRESHOLDS,
    areas: Mapping[str, tuple[float, float]] = AREAS,  # square pixels, both ends included
    most_per_class: int | None = MOST_PER_CLASS,  # in an image; None: all
    of: Kind = "bbox",  # IoU and areas of boxes, or of masks, which the table then needs
    unjudged: Flags | None = None,  # (D,) ignored where they match nothing (LVIS)
) -> MatchTable:
    """Match as pycocotools does.

    In each image and class, best score first, each detection takes the free box of highest IoU (the
    last of equals), a box that counts before one that is ignored. Crowds may be matched by many and
    are ignored, as are boxes whose annotated area is out of range, detections without a match
    whose own area is, and of masks the boxes that have none.
    """
    numbers, ranks = _ranked(annotations, table, most_per_class)
    kept = table.keep(numbers)
    ranges = np.array(list(areas.values()), dtype=np.float64).reshape(-1, 2)
    sizes = mask_areas(kept) if of == "segm" else box_areas(kept)
    outside = _outside(sizes, ranges)
    if unjudged is not None:
        outside |= unjudged[numbers]
    gt_ignored = annotations.crowd | _outside(annotations.areas, ranges)
    if of == "segm" and annotations.masks is not None:
        gt_ignored |= annotations.masks.are_missing
    state = _MatchState(len(ranges), len(iou_thresholds), len(kept), len(annotations.labels))
    capped = np.minimum(iou_thresholds, 1 - 1e-10)  # pycocotools: 1 is reached despite rounding
    pairs = _Pairs.sort(*candidate_pairs(annotations, kept, at_least=float(capped.min()), of=of))
    for round_ in pairs.rounds(kept, ranks, most_at_once=_PAIRS_AT_ONCE):
        state.match(round_, capped, annotations.crowd, gt_ignored)
    state.ignored[:] |= ~state.matched & outside[:, None, :]
    return MatchTable(
        iou_thresholds=np.asarray(iou_thresholds, dtype=np.float64),
        areas=tuple(areas),
        num_classes=len(annotations.categories),
        num_images=len(annotations),
        source=numbers,
        rows=kept.rows,
        labels=kept.labels,
        scores=kept.scores,
        ranks=ranks,
        matched=state.matched,
        ignored=state.ignored,
        partner=state.partner,
        gt_rows=np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets)),
        gt_labels=annotations.labels,
        gt_ignored=gt_ignored,
    )


def _ranked(annotations: Annotations, table: DetectionTable, most: int | None) -> tuple[Ints, Ints]:
    """Numbers of the detections in the order of a MatchTable, and their ranks."""
    order = np.lexsort((np.arange(len(table)), -table.scores, table.rows, table.labels))
    group = table.labels[order] * max(len(annotations), 1) + table.rows[order]
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    ranks = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    kept = slice(None) if most is None else ranks < most
    order, ranks = order[kept], ranks[kept]
    order_of_row = np.argsort(np.argsort(annotations.image_ids, kind="stable"))
    again = np.lexsort((ranks, order_of_row[table.rows[order]], -table.scores[order],
                        table.labels[order]))  # fmt: skip
    return order[again], ranks[again]


def _outside(sizes: Floats, ranges: Floats) -> Flags:
    """(A, ...) which areas are out of each range."""
    return np.asarray((sizes < ranges[:, :1]) | (sizes > ranges[:, 1:]))


@dataclass(frozen=True, eq=False)
class _Round:
    """Detections of different images or classes, which do not meet."""

    detections: Ints  # (n,)
    boxes: Ints  # (n, C) by IoU, the last of equals last; -1: no candidate
    ious: Floats  # (n, C) -1: no candidate


@dataclass(frozen=True, eq=False)
class _Pairs:
    detections: Ints  # (P,) ascending
    boxes: Ints  # (P,)
    ious: Floats  # (P,)

    @classmethod
    def sort(cls, detections: Ints, boxes: Ints, ious: Floats) -> _Pairs:
        order = np.lexsort((boxes, ious, detections))
        return cls(detections[order], boxes[order], ious[order])

    def rounds(self, kept: DetectionTable, ranks: Ints, *, most_at_once: int) -> Iterator[_Round]:
        """First the best detection of every image and class that has candidates, then the next."""
        matched, first, counts = np.unique(self.detections, return_index=True, return_counts=True)
        group = kept.rows[matched] * (int(kept.labels.max(initial=0)) + 1) + kept.labels[matched]
        order = np.lexsort((ranks[matched], group))
        starts = np.flatnonzero(np.diff(group[order], prepend=-1))
        number = np.empty(len(matched), dtype=np.int64)  # of the round
        repeats = np.diff(starts, append=len(matched))
        number[order] = np.arange(len(matched)) - np.repeat(starts, repeats)
        width = 1 << np.ceil(np.log2(counts)).astype(np.int64)  # few paddings in a round
        by_round = np.lexsort((width, number))
        cuts = np.flatnonzero(np.diff(number[by_round]) | np.diff(width[by_round])) + 1
        for alike in np.split(by_round, cuts):
            most = max(most_at_once // int(width[alike[0]]), 1) if len(alike) else 1
            for start in range(0, len(alike), most):
                part = alike[start : start + most]
                yield self._round(matched[part], first[part], counts[part])

    def _round(self, detections: Ints, first: Ints, counts: Ints) -> _Round:
        columns = np.arange(int(counts.max()))
        real = columns < counts[:, None]
        indices = np.where(real, first[:, None] + columns, 0)
        return _Round(
            detections,
            np.where(real, self.boxes[indices], -1),
            np.where(real, self.ious[indices], -1.0),
        )


class _MatchState:
    def __init__(self, areas: int, thresholds: int, detections: int, boxes: int) -> None:
        self.matched = np.zeros((areas, thresholds, detections), dtype=np.bool_)
        self.ignored = np.zeros((areas, thresholds, detections), dtype=np.bool_)
        self.partner = np.full((thresholds, detections), -1, dtype=np.int32)
        # the last one stands for "no candidate"
        self.taken = np.zeros((areas, thresholds, boxes + 1), dtype=np.bool_)

    def match(self, round_: _Round, thresholds: Floats, crowd: Flags, gt_ignored: Flags) -> None:
        """Each detection of the round takes its box at every area range and threshold."""
        most = round_.boxes.shape[1]
        free = ~self.taken[:, :, round_.boxes] | crowd[round_.boxes]
        free &= round_.ious >= thresholds[:, None, None]  # (A, T, n, C)
        counts = ~gt_ignored[:, round_.boxes][:, None]
        candidate = np.arange(most, dtype=np.int32) + np.int32(most) * counts.astype(np.int32)
        candidate = np.where(free, candidate, np.int32(-1))  # the highest is taken
        chosen = candidate.argmax(axis=-1)
        any_free = np.take_along_axis(candidate, chosen[..., None], axis=-1)[..., 0] >= 0
        area, threshold, number = np.nonzero(any_free)
        boxes = round_.boxes[number, chosen[area, threshold, number]]
        detections = round_.detections[number]
        self.matched[area, threshold, detections] = True
        self.ignored[area, threshold, detections] = gt_ignored[area, boxes]
        self.taken[area, threshold, boxes] = True
        first = area == 0
        self.partner[threshold[first], detections[first]] = boxes[first]

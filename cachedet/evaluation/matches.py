"""Which detection found which box: COCO's greedy matching of all images at once.

Letters: D detections, M ground-truth boxes, A area ranges, T IoU thresholds, K classes,
P candidate pairs (a detection and a box of its image and class that overlap enough),
n detections that have their turn at once, C candidates of a detection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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

_PAIRS_AT_ONCE = 100_000  # bounds the working memory of a turn: A x T x 6 bytes a pair


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchTable:
    """The fate of every detection and box, at each area range and IoU threshold.

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
    partner: NDArray[np.int32]  # (T, D) box found in the first area range, -1: none
    gt_rows: Ints  # (M,)
    gt_labels: Ints  # (M,)
    gt_ignored: Flags  # (A, M) crowds and boxes of other sizes

    def of_class(self, label: int) -> slice:
        """The class's detections."""
        first, last = np.searchsorted(self.labels, [label, label + 1])
        return slice(int(first), int(last))

    def threshold(self, iou: float) -> int:
        """Place of an IoU threshold. Raises ValueError where it was not matched at."""
        places = np.flatnonzero(np.isclose(self.iou_thresholds, iou, rtol=0, atol=1e-9))
        if not len(places):
            raise ValueError(f"matched at IoU {self.iou_thresholds.tolist()}, asked for {iou}")
        return int(places[0])


def match_detections(
    annotations: Annotations,
    table: DetectionTable,
    *,
    iou_thresholds: Floats = IOU_THRESHOLDS,
    areas: Mapping[str, tuple[float, float]] = AREAS,
    most_per_class: int | None = MOST_PER_CLASS,
    of: Kind = "bbox",
    unjudged: Flags | None = None,
) -> MatchTable:
    """Match as pycocotools does: in each image and class, best score first, each takes the free
    box of highest IoU (the last of equals), a box that counts before one that is ignored.

    Args:
        annotations: the boxes; crowds may be matched by many and are ignored, as are boxes whose
            annotated area is out of range.
        table: with masks where `of` is "segm".
        iou_thresholds: (T,).
        areas: name -> square pixels, both ends included. Detections without a match are ignored
            where their own area is out of range.
        most_per_class: detections of a class in an image; None: all of them.
        of: IoU and areas of boxes or of masks.
        unjudged: (D,) detections that are ignored where they match nothing (LVIS).
    """
    numbers, ranks = _ranked(annotations, table, most_per_class)
    kept = table.keep(numbers)
    ranges = np.array(list(areas.values()), dtype=np.float64).reshape(-1, 2)
    sizes = mask_areas(kept) if of == "segm" else box_areas(kept)
    outside = _outside(sizes, ranges)
    if unjudged is not None:
        outside |= unjudged[numbers]
    gt_ignored = annotations.crowd | _outside(annotations.areas, ranges)
    fates = _Fates.start(len(ranges), len(iou_thresholds), len(kept), len(annotations.labels))
    pairs = _Pairs.sort(*candidate_pairs(annotations, kept, at_least=_floor(iou_thresholds), of=of))
    for turn in pairs.turns(kept, ranks, most_at_once=_PAIRS_AT_ONCE):
        fates.play(turn, _capped(iou_thresholds), annotations.crowd, gt_ignored)
    fates.ignored[:] |= ~fates.matched & outside[:, None, :]
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
        matched=fates.matched,
        ignored=fates.ignored,
        partner=fates.partner,
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
    place_of_row = np.argsort(np.argsort(annotations.image_ids, kind="stable"))
    again = np.lexsort((ranks, place_of_row[table.rows[order]], -table.scores[order],
                        table.labels[order]))  # fmt: skip
    return order[again], ranks[again]


def _outside(sizes: Floats, ranges: Floats) -> Flags:
    """(A, ...) which areas are out of each range."""
    return np.asarray((sizes < ranges[:, :1]) | (sizes > ranges[:, 1:]))


def _capped(iou_thresholds: Floats) -> Floats:
    return np.minimum(iou_thresholds, 1 - 1e-10)  # pycocotools: 1 is reached despite rounding


def _floor(iou_thresholds: Floats) -> float:
    return float(_capped(iou_thresholds).min())


@dataclass(frozen=True, eq=False)
class _Turn:
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

    def turns(self, kept: DetectionTable, ranks: Ints, *, most_at_once: int) -> Any:
        """First the best candidate of every image and class, then the second, ..."""
        own, first, counts = np.unique(self.detections, return_index=True, return_counts=True)
        group = kept.rows[own] * (int(kept.labels.max(initial=0)) + 1) + kept.labels[own]
        order = np.lexsort((ranks[own], group))
        starts = np.flatnonzero(np.diff(group[order], prepend=-1))
        turn = np.empty(len(own), dtype=np.int64)
        turn[order] = np.arange(len(own)) - np.repeat(starts, np.diff(starts, append=len(own)))
        width = 1 << np.ceil(np.log2(counts)).astype(np.int64)  # few paddings in a turn
        by_turn = np.lexsort((width, turn))
        cuts = np.flatnonzero(np.diff(turn[by_turn]) | np.diff(width[by_turn])) + 1
        for alike in np.split(by_turn, cuts):
            most = max(most_at_once // int(width[alike[0]]), 1) if len(alike) else 1
            for start in range(0, len(alike), most):
                part = alike[start : start + most]
                yield self._turn(own[part], first[part], counts[part])

    def _turn(self, detections: Ints, first: Ints, counts: Ints) -> _Turn:
        columns = np.arange(int(counts.max()))
        real = columns < counts[:, None]
        places = np.where(real, first[:, None] + columns, 0)
        return _Turn(
            detections,
            np.where(real, self.boxes[places], -1),
            np.where(real, self.ious[places], -1.0),
        )


@dataclass(frozen=True, eq=False)
class _Fates:
    matched: Flags  # (A, T, D)
    ignored: Flags  # (A, T, D)
    partner: NDArray[np.int32]  # (T, D)
    taken: Flags  # (A, T, M + 1); the last stands for "no candidate"

    @classmethod
    def start(cls, areas: int, thresholds: int, detections: int, boxes: int) -> _Fates:
        return cls(
            np.zeros((areas, thresholds, detections), dtype=np.bool_),
            np.zeros((areas, thresholds, detections), dtype=np.bool_),
            np.full((thresholds, detections), -1, dtype=np.int32),
            np.zeros((areas, thresholds, boxes + 1), dtype=np.bool_),
        )

    def play(self, turn: _Turn, thresholds: Floats, crowd: Flags, gt_ignored: Flags) -> None:
        """Each detection of the turn takes its box at every area range and threshold."""
        most = turn.boxes.shape[1]
        free = ~self.taken[:, :, turn.boxes] | crowd[turn.boxes]
        free &= turn.ious >= thresholds[:, None, None]  # (A, T, n, C)
        counts = ~gt_ignored[:, turn.boxes][:, None]
        wish = np.arange(most, dtype=np.int32) + np.int32(most) * counts.astype(np.int32)
        wish = np.where(free, wish, np.int32(-1))
        chosen = wish.argmax(axis=-1)
        any_free = np.take_along_axis(wish, chosen[..., None], axis=-1)[..., 0] >= 0
        area, threshold, place = np.nonzero(any_free)
        boxes = turn.boxes[place, chosen[area, threshold, place]]
        detections = turn.detections[place]
        self.matched[area, threshold, detections] = True
        self.ignored[area, threshold, detections] = gt_ignored[area, boxes]
        self.taken[area, threshold, boxes] = True
        first = area == 0
        self.partner[threshold[first], detections[first]] = boxes[first]

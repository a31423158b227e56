"""What became of every detection and box, in the order in which COCO looks at them.

Letters: D detections, M ground-truth boxes, T IoU thresholds, R recalls, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cachedet.evaluation.detection_table import DetectionTable
from cachedet.evaluation.metrics import LARGEST_AREA, LIMITS, Flags, Floats, Ints, judge
from cachedet.structures import Annotations

IOU_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
HALF: Floats = np.array([0.5])


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchTable:
    """Which detection found which box at each IoU threshold; boxes of all sizes.

    Detections stand class by class, best score first; equal scores in the order of image ids, then
    as they came (pycocotools' order). Past the best 100 of a class in an image they are left out.
    """

    num_classes: int
    num_images: int
    source: Ints  # (D,) number in the detection table
    rows: Ints  # (D,) image
    labels: Ints  # (D,) ascending
    scores: Floats  # (D,)
    right: Flags  # (T, D)
    judged: Flags  # (T, D) right or wrong; what lies in a crowd is neither
    partner: Ints  # (T, D) box that a right one found, -1: none
    precision: Floats  # (T, R, K) -1: a class without boxes
    gt_rows: Ints  # (M,)
    gt_labels: Ints  # (M,)
    gt_ignored: Flags  # (M,) crowds

    def of_class(self, label: int) -> slice:
        """The class's detections."""
        first, last = np.searchsorted(self.labels, [label, label + 1])
        return slice(int(first), int(last))

    def count_gt(self) -> Ints:
        """(K,) boxes that count."""
        return np.bincount(self.gt_labels[~self.gt_ignored], minlength=self.num_classes)


def match_detections(
    annotations: Annotations, table: DetectionTable, *, iou_thresholds: Floats = IOU_THRESHOLDS
) -> MatchTable:
    """Match boxes as pycocotools does.

    In each image and class, best score first, each detection takes the free box of highest IoU (the
    last of equals), a box that counts before a crowd, which many may take.
    """
    numbers = _in_order(annotations, table)
    partner, judged, precision = judge(annotations, table, iou_thresholds=iou_thresholds)
    return MatchTable(
        num_classes=len(annotations.categories),
        num_images=len(annotations),
        source=numbers,
        rows=table.rows[numbers],
        labels=table.labels[numbers],
        scores=table.scores[numbers],
        right=partner[:, numbers] >= 0,
        judged=judged[:, numbers],
        partner=partner[:, numbers],
        precision=precision,
        gt_rows=np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets)),
        gt_labels=annotations.labels,
        gt_ignored=annotations.crowd | (annotations.areas < 0) | (annotations.areas > LARGEST_AREA),
    )


def best_of_groups(table: DetectionTable, groups: Ints, *, most: int) -> Ints:
    """Numbers of the `most` best scores of each group (D,), in the order they came."""
    order = np.lexsort((np.arange(len(table)), -table.scores, groups))
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    ranks = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return np.sort(order[ranks < most])


def _in_order(annotations: Annotations, table: DetectionTable) -> Ints:
    """Numbers of the detections in the order of a MatchTable."""
    groups = table.rows * len(annotations.categories) + table.labels
    kept = best_of_groups(table, groups, most=LIMITS[-1])
    place = np.argsort(np.argsort(annotations.image_ids, kind="stable"))
    return kept[np.lexsort((place[table.rows[kept]], -table.scores[kept], table.labels[kept]))]

"""Which classes are taken for which: the confusion matrix of detections above a score.

Letters: K classes, D detections, M ground-truth boxes, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.evaluation.detection_table import DetectionTable
from cachedet.evaluation.matches import HALF, match_detections
from cachedet.evaluation.metrics import Flags, Ints
from cachedet.evaluation.overlaps import candidate_pairs
from cachedet.structures import Annotations, CategoryMap


@dataclass(frozen=True, kw_only=True, eq=False)
class ConfusionMatrix:
    """`counts[t, p]`: boxes of class t detected as class p; row and column K are the background.

    The last row holds detections of nothing, the last column boxes that nothing detected.
    """

    categories: CategoryMap
    counts: NDArray[np.int64]  # (K + 1, K + 1)
    min_score: float

    def to_json(self) -> dict[str, Any]:
        """Only cells that are not 0, by category id; null is the background."""
        ids: list[int | None] = [*self.categories.ids, None]
        return {
            "min_score": self.min_score,
            "iou": HALF[0].item(),
            "cells": [
                {
                    "ground_truth": ids[there],
                    "detected": ids[found],
                    "count": int(self.counts[there, found]),
                }
                for there, found in np.argwhere(self.counts).tolist()
            ],
        }


def confuse(
    annotations: Annotations, table: DetectionTable, *, min_score: float
) -> ConfusionMatrix:
    """Count which classes are taken for which at IoU 0.5, by detections of `min_score` or more.

    First each detection takes a box of its own class as in COCO; then, best score first, those left
    take the box of another class that they overlap most. Crowds are no boxes here, and detections
    in a crowd of their class are left out.
    """
    table = table.keep(table.scores >= min_score)
    matches = match_detections(annotations, table, iou_thresholds=HALF)
    kept = table.keep(matches.source)
    judged, box_of = matches.judged[0], matches.partner[0].copy()
    free = ~annotations.crowd
    free[box_of[box_of >= 0]] = False
    left = np.flatnonzero((box_of < 0) & judged)
    for detection, box in _take_others(annotations, kept, left, free).items():
        box_of[detection] = box
    classes = len(annotations.categories)
    counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    labels = np.append(annotations.labels, classes)  # box -1 is the background
    np.add.at(counts, (labels[box_of[judged]], kept.labels[judged]), 1)
    undetected = ~annotations.crowd
    undetected[box_of[box_of >= 0]] = False
    counts[:classes, classes] = np.bincount(annotations.labels[undetected], minlength=classes)
    return ConfusionMatrix(categories=annotations.categories, counts=counts, min_score=min_score)


def _take_others(
    annotations: Annotations, kept: DetectionTable, left: Ints, free: Flags
) -> dict[int, int]:
    """What the detections `left` take of the `free` boxes of any class."""
    pairs = candidate_pairs(annotations, kept.keep(left), at_least=HALF[0])
    open_pairs = free[pairs[1]]
    indices, boxes, overlaps = (column[open_pairs] for column in pairs)
    detections = left[indices]
    order = np.lexsort((boxes, -overlaps, detections, -kept.scores[detections]))
    detection_of: dict[int, int] = {}  # by box
    box_of: dict[int, int] = {}
    for detection, box in zip(detections[order].tolist(), boxes[order].tolist(), strict=True):
        if detection not in box_of and box not in detection_of:
            box_of[detection], detection_of[box] = box, detection
    return box_of

"""IoU of detections and ground-truth boxes, by the routines of pycocotools.

Letters: D detections, P candidate pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from cachedet.data.masks import empty_code, require_covers, rle_of
from cachedet.errors import InputError
from cachedet.evaluation.detection_table import DetectionTable
from cachedet.structures import Annotations

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


def candidate_pairs(annotations: Annotations, table: DetectionTable, *, at_least: float) -> Pairs:
    """Detections, boxes and IoUs (P,) of pairs in one image that overlap `at_least` so much.

    Of whatever class; the "IoU" with a crowd is the part of the detection inside it, as in COCO.
    """
    pairs = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))]
    xywh = annotations.xywh
    order = np.argsort(table.rows, kind="stable")
    rows, starts = np.unique(table.rows[order], return_index=True)
    for row, numbers in zip(rows.tolist(), np.split(order, starts[1:]), strict=False):
        span = annotations.boxes_of(row)
        if span.start == span.stop:
            continue
        crowd = annotations.crowd[span].tolist()
        ious = np.asarray(coco_mask.iou(table.xywh[numbers], xywh[span], crowd))
        detection, box = np.nonzero(ious >= at_least)
        pairs.append((numbers[detection], box + span.start, ious[detection, box]))
    detections, boxes, ious = (np.concatenate(column) for column in zip(*pairs, strict=True))
    return detections, boxes, ious


def box_areas(table: DetectionTable) -> NDArray[np.float64]:
    """(D,) square pixels."""
    return np.asarray(table.xywh[:, 2] * table.xywh[:, 3])


def mask_areas(table: DetectionTable) -> NDArray[np.float64]:
    """(D,) square pixels. Raises InputError where the detections have no masks."""
    if table.masks is None and len(table):
        raise InputError("scoring masks needs detections with masks; these have boxes only")
    # One by one: pycocotools 2.0.11 fails on a list of more than 255 (it counts them in a byte).
    areas = [int(coco_mask.area(mask)) for mask in table.masks or ()]
    return np.array(areas, dtype=np.float64)


def masks_of_image(annotations: Annotations, row: int) -> list[dict[str, Any]]:
    """RLEs of the image's boxes; one that overlaps nothing where a box has no mask.

    Raises:
        InputError: the ground truth has no masks at all.
        StoreError: a mask that is not one of such an image; pycocotools would write beyond its
            memory.
    """
    if annotations.masks is None:
        raise InputError("scoring masks needs ground truth with masks; this one has boxes only")
    size_hw = annotations.size_of(row)
    span = annotations.boxes_of(row)
    masks = []
    for number in range(span.start, span.stop):
        code = annotations.masks[number] or empty_code(size_hw)
        require_covers(code, size_hw)
        masks.append(rle_of(code, size_hw))
    return masks

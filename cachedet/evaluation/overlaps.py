"""IoU of detections and ground-truth boxes, by the routines of pycocotools.

Letters: D detections, P candidate pairs.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from cachedet.data.masks import empty_code, require_covers, rle_of
from cachedet.errors import InputError
from cachedet.evaluation.detection_table import DetectionTable
from cachedet.structures import Annotations

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


def candidate_pairs(
    annotations: Annotations,
    table: DetectionTable,
    *,
    at_least: float,
    of: Literal["bbox", "segm"] = "bbox",
    same_class: bool = True,
) -> Pairs:
    """Detections, boxes and IoUs (P,) of pairs in one image that overlap `at_least` so much.

    The "IoU" with a crowd is the part of the detection inside it, as in COCO. Masks are only paired
    within a class.
    """
    pairs = []
    xywh = annotations.xywh
    order = np.argsort(table.rows, kind="stable")
    rows, starts = np.unique(table.rows[order], return_index=True)
    for row, numbers in zip(rows.tolist(), np.split(order, starts[1:]), strict=False):
        span = annotations.boxes_of(row)
        boxes = np.arange(span.start, span.stop)
        if not len(boxes):
            continue
        crowd = annotations.crowd[boxes]
        if of == "bbox":
            ious = np.asarray(coco_mask.iou(table.xywh[numbers], xywh[boxes], crowd.tolist()))
            close = ious >= at_least
            if same_class:
                close &= table.labels[numbers][:, None] == annotations.labels[boxes]
            detection, box = np.nonzero(close)
            pairs.append((numbers[detection], boxes[box], ious[detection, box]))
            continue
        given, masks = _masks_of(table), masks_of_image(annotations, row)
        for label in np.unique(table.labels[numbers]):  # masks of other classes cost too much
            mine = numbers[table.labels[numbers] == label]
            theirs = np.flatnonzero(annotations.labels[boxes] == label)
            if not len(theirs):
                continue
            codes = [given[n] for n in mine], [masks[n] for n in theirs]
            ious = np.asarray(coco_mask.iou(*codes, crowd[theirs].tolist()))
            detection, box = np.nonzero(ious >= at_least)
            pairs.append((mine[detection], boxes[theirs[box]], ious[detection, box]))
    empty = np.zeros(0, dtype=np.int64)
    columns = zip(*[(empty, empty, np.zeros(0)), *pairs], strict=True)
    detections, partners, ious = (np.concatenate(column) for column in columns)
    return detections, partners, ious


def box_areas(table: DetectionTable) -> NDArray[np.float64]:
    """(D,) square pixels."""
    return np.asarray(table.xywh[:, 2] * table.xywh[:, 3])


def mask_areas(table: DetectionTable) -> NDArray[np.float64]:
    """(D,) square pixels. Raises InputError where the detections have no masks."""
    # One by one: pycocotools 2.0.11 fails on a list of more than 255 (it counts them in a byte).
    areas = [int(coco_mask.area(mask)) for mask in _masks_of(table)]
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


def _masks_of(table: DetectionTable) -> list[dict[str, Any]]:
    if table.masks is None and len(table):
        raise InputError("scoring masks needs detections with masks; these have boxes only")
    return list(table.masks or ())

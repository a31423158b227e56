"""COCO's and LVIS's figures, and which box each detection finds, by hotcoco.

Its arrays are pycocotools' own to the last bit (tests/evaluation/test_metrics.py). Nothing else
imports hotcoco, so that pycocotools or faster-coco-eval could take its place here.

Letters: D detections, M ground-truth boxes, N images, K classes, A area ranges, T IoU thresholds,
R recalls, L limits of detections of an image (and class, where classes are told apart).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import hotcoco
import numpy as np
from numpy.typing import NDArray

from cachedet.errors import InputError
from cachedet.evaluation.detection_table import (
    DetectionsOrTable,
    DetectionTable,
    has_masks,
    tabulate,
)
from cachedet.evaluation.overlaps import mask_areas, masks_of_image
from cachedet.evaluation.precision import mean_known, to_json_values
from cachedet.structures import Annotations, Detections

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Kind = Literal["bbox", "segm"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

LIMITS = (1, 10, 100)  # detections of a class in an image, of COCO's figures
LARGEST_AREA = 1e5**2  # square pixels that count as "all" sizes
_process: int | None = None  # that has started hotcoco's threads


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """AP of one class; NaN where no image holds the class."""

    name: str
    category_id: int
    num_boxes: int
    ap: float
    ap50: float


@dataclass(frozen=True, kw_only=True)
class CocoScores:
    """The 12 COCO figures (0..1; NaN where COCO says -1: no such boxes) and AP per class.

    In the order of COCO's own list.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: tuple[ClassScore, ...]
    num_images: int
    num_detections: int

    def to_json(self) -> dict[str, Any]:
        return to_json_values(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Accumulated:
    """What pycocotools calls `eval` and `stats`; -1 where a class has no box that counts."""

    precision: Floats  # (T, R, K, A, L)
    recall: Floats  # (T, K, A, L)
    figures: tuple[float, ...]  # the protocol's own, in its order; NaN where it says -1

    def named(self, record: type[DataclassInstance]) -> dict[str, float]:
        """The figures by the names of the record's first fields."""
        return {
            field.name: value for field, value in zip(fields(record), self.figures, strict=False)
        }

    def ap_of_class(self, label: int, *, thresholds: slice = slice(None)) -> float:
        """Mean precision over all sizes; NaN where the class has no box."""
        return mean_known(self.precision[thresholds, :, label, 0, -1])


def score_detections(annotations: Annotations, detections: Sequence[Detections]) -> CocoScores:
    """Score detections in pixels of the images against the ground truth.

    Raises InputError on an unknown image or label, or a box or score that is NaN or Inf.
    """
    return score_table(annotations, tabulate(annotations, detections))


def score_table(
    annotations: Annotations, table: DetectionTable, *, of: Kind = "bbox"
) -> CocoScores:
    """Score the boxes or the masks of a table."""
    full = accumulate(annotations, table, of=of)
    categories = annotations.categories
    num_boxes = np.bincount(annotations.labels[~annotations.crowd], minlength=len(categories))
    per_class = tuple(
        ClassScore(
            name=categories.names[label],
            category_id=categories.ids[label],
            num_boxes=int(number),
            ap=full.ap_of_class(label),
            ap50=full.ap_of_class(label, thresholds=slice(1)),
        )
        for label, number in enumerate(num_boxes)
    )
    return CocoScores(
        **full.named(CocoScores),
        per_class=per_class,
        num_images=len(annotations),
        num_detections=len(table),
    )


def accumulate(
    annotations: Annotations,
    table: DetectionTable,
    *,
    of: Kind = "bbox",
    limits: Sequence[int] = LIMITS,
    with_classes: bool = True,
) -> Accumulated:
    """COCO's figures of boxes or masks; those in `figures` only at COCO's own limits."""
    evaluator = hotcoco.COCOeval(*_load(annotations, table, of), of)
    evaluator.params.max_dets = list(limits)
    evaluator.params.use_cats = with_classes
    return _accumulated(evaluator, summed=tuple(limits) == LIMITS and with_classes)


def accumulate_lvis(
    annotations: Annotations,
    table: DetectionTable,
    *,
    of: Kind = "bbox",
    image_fields: Sequence[Mapping[str, list[int]]],  # N, labels for class ids
    frequencies: Sequence[str],  # K of r, c, f
) -> Accumulated:
    """LVIS's figures; the limit of an image is the caller's, as is leaving out empty boxes."""
    truth, results = _load(
        annotations, table, of, image_fields=image_fields, frequencies=frequencies
    )
    uncapped = results.cap_detections_per_image(None)
    return _accumulated(hotcoco.COCOeval(truth, uncapped, of, lvis_style=True), summed=True)


def judge(
    annotations: Annotations, table: DetectionTable, *, iou_thresholds: Floats
) -> tuple[Ints, Flags, Floats]:
    """Which boxes the detections find, as in COCO, of all sizes, at some IoU thresholds.

    Boxes (T, D), -1: none; which detections are judged (T, D), not those in crowds or past the best
    100 of a class and image; precision (T, R, K), -1: a class without boxes.
    """
    evaluator = hotcoco.COCOeval(*_load(annotations, table, "bbox"), "bbox")
    params = evaluator.params
    params.iou_thrs, params.max_dets = iou_thresholds.tolist(), [LIMITS[-1]]
    params.area_rng, params.area_rng_lbl = [[0.0, LARGEST_AREA]], ["all"]
    precision = _accumulated(evaluator, summed=False).precision[:, :, :, 0, 0]
    shape = len(iou_thresholds), len(table)
    partner, judged = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    for at, iou in enumerate(params.iou_thrs):
        # No score reaches infinity: labels that look wrong are not searched for.
        found = evaluator.image_diagnostics(iou_thr=iou, score_thr=math.inf)
        pairs, known = found["dt_match"], found["dt_status"]
        numbers = np.fromiter(pairs, dtype=np.int64, count=len(pairs)) - 1
        partner[at, numbers] = np.fromiter(pairs.values(), dtype=np.int64, count=len(pairs)) - 1
        judged[at, np.fromiter(known, dtype=np.int64, count=len(known)) - 1] = True
    return partner, judged, precision


def _load(
    annotations: Annotations,
    table: DetectionTable,
    of: Kind,
    *,
    image_fields: Sequence[Mapping[str, list[int]]] = (),
    frequencies: Sequence[str] = (),
) -> tuple[hotcoco.COCO, hotcoco.COCO]:
    """Ground truth and detections as hotcoco takes them.

    Ids are numbers from 0 (of boxes and detections from 1), as it knows none below 0, and names
    are numbers, as theirs may be no text. Images are in the order of their ids, which decides
    among equal scores as in pycocotools.
    """
    _require_own_threads()
    order = np.argsort(annotations.image_ids, kind="stable")
    place = np.argsort(order)
    more = [image_fields[row] if image_fields else {} for row in order.tolist()]
    # Only masks need sizes, and are never large: a file may say 10^12 pixels beside mere boxes.
    sizes = annotations.sizes_hw[order] if of == "segm" else np.ones((len(order), 2))
    images = [
        {"id": number, "height": int(height), "width": int(width), **more[number]}
        for number, (height, width) in enumerate(sizes)
    ]
    rated: Sequence[str | None] = frequencies or [None] * len(annotations.categories)
    categories = [
        {"id": number, "name": str(number), "frequency": frequency}
        for number, frequency in enumerate(rated)
    ]
    rows = np.repeat(place, np.diff(annotations.offsets))
    boxes, masks = _truth_of_masks(annotations) if of == "segm" else (np.arange(len(rows)), None)
    truth = hotcoco.COCO.from_arrays(
        images,
        categories,
        rows[boxes],
        annotations.labels[boxes],
        annotations.xywh[boxes],
        ids=boxes + 1,
        area=annotations.areas[boxes],
        iscrowd=annotations.crowd[boxes],
        segmentation=masks,
    )
    given = np.column_stack([place[table.rows], table.xywh, table.scores, table.labels])
    given = given.astype(np.float64)
    if of == "bbox":
        return truth, truth.load_res(given)
    areas = mask_areas(table)  # not their boxes'
    results = truth.load_res(given, segmentation=list(table.masks or ()))
    results.update_anns(ids=np.arange(1, len(table) + 1), area=areas)
    return truth, results


def _require_own_threads() -> None:
    """Raises InputError in a child of one that scored: hotcoco would wait for its parent's."""
    global _process
    if _process not in (None, os.getpid()):
        raise InputError(
            "this process was forked by one that had scored detections, and the threads that score "
            "are the parent's; start it with `spawn`, or score nothing before it is forked"
        )
    _process = os.getpid()


def _truth_of_masks(annotations: Annotations) -> tuple[Ints, list[Any]]:
    """Numbers and masks of the boxes that have one; the others are no truth about masks."""
    masks = [mask for row in range(len(annotations)) for mask in masks_of_image(annotations, row)]
    if annotations.masks is None:
        return np.zeros(0, dtype=np.int64), []
    numbers = np.flatnonzero(~annotations.masks.are_missing)
    return numbers, [masks[number] for number in numbers.tolist()]


def _accumulated(evaluator: hotcoco.COCOeval, *, summed: bool) -> Accumulated:
    evaluator.evaluate()
    evaluator.accumulate()
    if summed:
        evaluator.summary_lines()  # it prints nothing, and fills in `stats`
    arrays = evaluator.eval or {}
    return Accumulated(
        precision=arrays["precision"],
        recall=arrays["recall"],
        figures=tuple(math.nan if value == -1 else float(value) for value in evaluator.stats),
    )


def coco_results(annotations: Annotations, detections: DetectionsOrTable) -> list[dict[str, Any]]:
    """COCO results rows: image_id, category_id, bbox xywh, score; segmentation where predicted.

    Raises InputError.
    """
    table = tabulate(annotations, detections, with_masks=has_masks(detections))
    columns = (annotations.image_ids[table.rows], table.labels, table.xywh, table.scores)
    results = [
        {
            "image_id": image_id,
            "category_id": annotations.categories.ids[label],
            "bbox": box,
            "score": score,
        }
        for image_id, label, box, score in zip(*(c.tolist() for c in columns), strict=True)
    ]
    for result, mask in zip(results, table.masks or (), strict=False):
        result["segmentation"] = mask
    return results


def ground_truth_json(annotations: Annotations) -> dict[str, Any]:
    """The ground truth as a COCO annotation file."""
    xywh = annotations.xywh
    image_of = np.repeat(annotations.image_ids, np.diff(annotations.offsets))
    rows = [
        {
            "id": number + 1,
            "image_id": int(image_of[number]),
            "category_id": annotations.categories.ids[annotations.labels[number]],
            "bbox": xywh[number].tolist(),
            "area": float(annotations.areas[number]),
            "iscrowd": int(annotations.crowd[number]),
        }
        for number in range(len(annotations.labels))
    ]
    if annotations.masks is not None:
        masks = (masks_of_image(annotations, row) for row in range(len(annotations)))
        for number, mask in enumerate(chain.from_iterable(masks)):
            if not annotations.masks.are_missing[number]:
                rows[number]["segmentation"] = mask
    images = [
        {"id": int(image_id), "file_name": name, "height": int(size[0]), "width": int(size[1])}
        for image_id, name, size in zip(
            annotations.image_ids, annotations.file_names, annotations.sizes_hw, strict=True
        )
    ]
    classes = zip(annotations.categories.ids, annotations.categories.names, strict=True)
    categories = [{"id": category_id, "name": name} for category_id, name in classes]
    return {"info": {}, "images": images, "annotations": rows, "categories": categories}

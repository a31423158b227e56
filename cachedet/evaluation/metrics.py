"""COCO's figures of detections, equal to pycocotools' (tests/evaluation/test_metrics.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from cachedet.evaluation.detection_table import (
    DetectionsOrTable,
    DetectionTable,
    has_masks,
    tabulate,
)
from cachedet.evaluation.matches import Kind, MatchTable, match_detections
from cachedet.evaluation.overlaps import masks_of_image
from cachedet.evaluation.precision import PrecisionTable, accumulate, to_json_values
from cachedet.structures import Annotations, Detections


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
    """The 12 COCO figures (0..1; NaN where COCO says -1: no such boxes) and AP per class."""

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


def score_detections(annotations: Annotations, detections: Sequence[Detections]) -> CocoScores:
    """Score detections in pixels of the images against the ground truth.

    Raises InputError on an unknown image or label, or a box or score that is NaN or Inf.
    """
    return score_table(annotations, tabulate(annotations, detections))


def score_table(
    annotations: Annotations, table: DetectionTable, *, of: Kind = "bbox"
) -> CocoScores:
    """Score the boxes or the masks of a table."""
    return score_matches(
        annotations, match_detections(annotations, table, of=of), num_detections=len(table)
    )


def score_matches(
    annotations: Annotations, matches: MatchTable, *, num_detections: int
) -> CocoScores:
    """COCO's figures of matches at its own IoU thresholds and areas, in pycocotools' order."""
    full = accumulate(matches)
    return CocoScores(
        ap=full.mean_precision(),
        ap50=full.mean_precision(threshold=matches.threshold(0.5)),
        ap75=full.mean_precision(threshold=matches.threshold(0.75)),
        ar1=accumulate(matches, most_per_class=1).mean_recall(),
        ar10=accumulate(matches, most_per_class=10).mean_recall(),
        ar100=full.mean_recall(),
        **full.by_area(),
        per_class=_per_class(full, matches, annotations),
        num_images=len(annotations),
        num_detections=num_detections,
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


def _per_class(
    full: PrecisionTable, matches: MatchTable, annotations: Annotations
) -> tuple[ClassScore, ...]:
    categories = annotations.categories
    num_boxes = np.bincount(annotations.labels[~annotations.crowd], minlength=len(categories))
    half = matches.threshold(0.5)
    return tuple(
        ClassScore(
            name=categories.names[label],
            category_id=categories.ids[label],
            num_boxes=int(number),
            ap=full.mean_precision(labels=[label]),
            ap50=full.mean_precision(labels=[label], threshold=half),
        )
        for label, number in enumerate(num_boxes)
    )

"""COCO figures of detections, by pycocotools, from the truth kept in a store."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cachedet.errors import InputError
from cachedet.structures import Detections, Truth

_FIGURES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """AP of one class; NaN where no picture holds the class."""

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
    num_pictures: int
    num_detections: int

    def to_json(self) -> dict[str, Any]:
        """JSON values; null instead of NaN."""
        values = dataclasses.asdict(self)
        figures = {name: _or_none(values[name]) for name in _FIGURES}
        classes = [
            {**score, "ap": _or_none(score["ap"]), "ap50": _or_none(score["ap50"])}
            for score in values["per_class"]
        ]
        return {**values, **figures, "per_class": classes}


def score_detections(truth: Truth, detections: Sequence[Detections]) -> CocoScores:
    """Score detections in pixels of the pictures against the truth.

    Raises InputError on an unknown picture or label, or a box or score that is NaN or Inf.
    """
    return score_results(truth, coco_results(truth, detections))


def score_results(truth: Truth, rows: list[dict[str, Any]]) -> CocoScores:
    """Score the rows that `coco_results` made."""
    with contextlib.redirect_stdout(io.StringIO()):
        scored = run_pycocotools(ground_truth_json(truth), rows)
    figures = {
        name: _nan_if_absent(value) for name, value in zip(_FIGURES, scored.stats, strict=True)
    }
    return CocoScores(
        **figures,
        per_class=_per_class(scored, truth),
        num_pictures=len(truth),
        num_detections=len(rows),
    )


def run_pycocotools(annotations: dict[str, Any], results: list[dict[str, Any]]) -> Any:
    """The finished COCOeval of boxes; prints what pycocotools prints."""
    ground_truth = COCO()
    ground_truth.dataset = annotations
    ground_truth.createIndex()
    found = ground_truth.loadRes(results) if results else _no_results(annotations)
    scored = COCOeval(ground_truth, found, "bbox")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    return scored


def coco_results(truth: Truth, detections: Sequence[Detections]) -> list[dict[str, Any]]:
    """COCO results rows: image_id, category_id, bbox xywh, score. Raises InputError."""
    known = set(truth.image_ids.tolist())
    results = []
    for found in detections:
        if found.image_id not in known:
            raise InputError(f"detections for image id {found.image_id}, which is not in the truth")
        _require_valid(found, num_classes=len(truth.categories))
        for box, score, label in zip(
            found.boxes.double().tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        ):
            x1, y1, x2, y2 = box
            results.append(
                {
                    "image_id": found.image_id,
                    "category_id": truth.categories.ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                }
            )
    return results


def ground_truth_json(truth: Truth) -> dict[str, Any]:
    """The truth as a COCO annotation file."""
    xywh = np.concatenate([truth.boxes[:, :2], truth.boxes[:, 2:] - truth.boxes[:, :2]], axis=1)
    image_of = np.repeat(truth.image_ids, np.diff(truth.offsets))
    annotations = [
        {
            "id": number + 1,
            "image_id": int(image_of[number]),
            "category_id": truth.categories.ids[truth.labels[number]],
            "bbox": xywh[number].tolist(),
            "area": float(truth.areas[number]),
            "iscrowd": int(truth.crowd[number]),
        }
        for number in range(len(truth.labels))
    ]
    images = [
        {"id": int(image_id), "file_name": name, "height": int(size[0]), "width": int(size[1])}
        for image_id, name, size in zip(
            truth.image_ids, truth.file_names, truth.sizes_hw, strict=True
        )
    ]
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(truth.categories.ids, truth.categories.names, strict=True)
    ]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _per_class(scored: Any, truth: Truth) -> tuple[ClassScore, ...]:
    """Means over the precision array (IoU, recall, class, area, detections) as COCO takes them."""
    precision = scored.eval["precision"][:, :, :, 0, -1]
    num_boxes = np.bincount(truth.labels[~truth.crowd], minlength=len(truth.categories))
    return tuple(
        ClassScore(
            name=name,
            category_id=category_id,
            num_boxes=int(num_boxes[label]),
            ap=_mean_precision(precision[:, :, label]),
            ap50=_mean_precision(precision[0, :, label]),
        )
        for label, (category_id, name) in enumerate(
            zip(truth.categories.ids, truth.categories.names, strict=True)
        )
    )


def _mean_precision(precision: Any) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else math.nan


def _require_valid(found: Detections, *, num_classes: int) -> None:
    where = f"detections of image id {found.image_id}"
    if not bool(found.boxes.isfinite().all()) or not bool(found.scores.isfinite().all()):
        raise InputError(f"{where} hold a box or score that is NaN or Inf")
    if len(found) and not bool(((found.labels >= 0) & (found.labels < num_classes)).all()):
        raise InputError(f"{where} hold a label outside 0..{num_classes - 1}")


def _no_results(annotations: dict[str, Any]) -> Any:
    """What `loadRes` of an empty list would be; pycocotools refuses empty lists."""
    empty = COCO()
    empty.dataset = {**annotations, "annotations": []}
    empty.createIndex()
    return empty


def _nan_if_absent(value: float) -> float:
    return math.nan if value == -1 else float(value)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value

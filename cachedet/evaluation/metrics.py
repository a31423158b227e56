"""COCO figures of detections, by pycocotools, from the truth kept in a store."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cachedet.errors import InputError
from cachedet.evaluation.masks import paste_masks
from cachedet.masks import encode_bitmap, require_covers, rle_of
from cachedet.structures import Detections, Truth

Kind = Literal["bbox", "segm"]

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


def score_results(truth: Truth, rows: list[dict[str, Any]], *, of: Kind = "bbox") -> CocoScores:
    """Score the boxes or the masks of the rows that `coco_results` made."""
    if of == "segm":  # without boxes, so that areas are those of the masks
        rows = [{key: value for key, value in row.items() if key != "bbox"} for row in rows]
    with contextlib.redirect_stdout(io.StringIO()):
        scored = run_pycocotools(ground_truth_json(truth), rows, of=of)
    figures = {
        name: _nan_if_absent(value) for name, value in zip(_FIGURES, scored.stats, strict=True)
    }
    return CocoScores(
        **figures,
        per_class=_per_class(scored, truth),
        num_pictures=len(truth),
        num_detections=len(rows),
    )


def run_pycocotools(
    annotations: dict[str, Any], results: list[dict[str, Any]], *, of: Kind = "bbox"
) -> Any:
    """The finished COCOeval of boxes or masks; prints what pycocotools prints."""
    ground_truth = COCO()
    ground_truth.dataset = annotations
    ground_truth.createIndex()
    found = ground_truth.loadRes(results) if results else _no_results(annotations)
    scored = COCOeval(ground_truth, found, of)
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    return scored


def coco_results(truth: Truth, detections: Sequence[Detections]) -> list[dict[str, Any]]:
    """COCO results rows: image_id, category_id, bbox xywh, score; segmentation where predicted.

    Raises InputError.
    """
    row_of = {image_id: row for row, image_id in enumerate(truth.image_ids.tolist())}
    results: list[dict[str, Any]] = []
    for found in detections:
        if found.image_id not in row_of:
            raise InputError(f"detections for image id {found.image_id}, which is not in the truth")
        _require_valid(found, num_classes=len(truth.categories))
        first = len(results)
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
        size_hw = truth.size_of(row_of[found.image_id])
        for result, code in zip(results[first:], paste_masks(found, size_hw), strict=False):
            result["segmentation"] = rle_of(code, size_hw)
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
    if truth.masks is not None:
        sizes = np.repeat(truth.sizes_hw, np.diff(truth.offsets), axis=0).tolist()
        for number, annotation in enumerate(annotations):
            code = truth.masks[number] or encode_bitmap(_filled(truth.boxes[number], sizes[number]))
            require_covers(code, tuple(sizes[number]))
            annotation["segmentation"] = rle_of(code, tuple(sizes[number]))
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


def _filled(box: NDArray[np.float64], size_hw: list[int]) -> NDArray[np.bool_]:
    """A box as its own mask, for annotations without one: pycocotools needs a mask of each."""
    bitmap = np.zeros(size_hw, dtype=np.bool_)
    x1, y1, x2, y2 = box.round().clip(min=0).astype(int)
    bitmap[y1:y2, x1:x2] = True
    return bitmap


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

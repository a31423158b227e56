"""The LVIS v1 protocol (arXiv 1908.03195, section 3; checked against the official lvis-api).

Not every class is annotated in every image: an image says which classes it holds, which it
surely does not hold (`neg_category_ids`) and which it holds but not all of
(`not_exhaustive_category_ids`). Detections of other classes are left out; those of the last kind
are never wrong. The best 300 detections of an image are scored, of all classes together.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.errors import DatasetError
from cachedet.evaluation.detection_table import DetectionsOrTable, DetectionTable, tabulate
from cachedet.evaluation.matches import Kind, MatchTable, match_detections
from cachedet.evaluation.overlaps import box_areas, mask_areas
from cachedet.evaluation.precision import accumulate, to_json_values
from cachedet.structures import Annotations

MOST_PER_IMAGE = 300
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}  # 1-10, 11-100, > 100 train images


@dataclass(frozen=True, kw_only=True, eq=False)
class Federated:
    """Fields of LVIS beyond COCO's, as sets of (image, class): `row * K + label`, sorted."""

    negative: NDArray[np.int64]
    not_exhaustive: NDArray[np.int64]
    frequencies: tuple[str, ...]  # K of r, c, f


@dataclass(frozen=True, kw_only=True)
class LvisScores:
    """LVIS's 13 figures (0..1; NaN where LVIS says -1) and AP per class."""

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ap_rare: float
    ap_common: float
    ap_frequent: float
    ar300: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: tuple[float, ...]  # K
    num_images: int
    num_detections: int  # given
    num_judged: int  # after the limit and without classes an image says nothing about

    def to_json(self) -> dict[str, Any]:
        return to_json_values(self)


def read_federated(content: dict[str, Any], annotations: Annotations, *, where: Path) -> Federated:
    """LVIS's own fields of an annotation file that `annotations` was read from.

    Raises DatasetError where an image or class lacks them.
    """
    label_of = annotations.categories.label_of()
    by_id = {entry["id"]: entry for entry in content["categories"]}
    frequencies = tuple(
        by_id[category_id].get("frequency") for category_id in annotations.categories.ids
    )
    for category_id, frequency in zip(annotations.categories.ids, frequencies, strict=True):
        if not isinstance(frequency, str) or frequency not in FREQUENCIES:
            raise DatasetError(
                f"{where}: category id {category_id} needs a `frequency` of r, c or f to be "
                f"scored as LVIS v1, got {reprlib.repr(frequency)}; score it as COCO instead"
            )
    return Federated(
        negative=_codes(content["images"], "neg_category_ids", label_of, where),
        not_exhaustive=_codes(content["images"], "not_exhaustive_category_ids", label_of, where),
        frequencies=frequencies,
    )


def score_lvis(
    annotations: Annotations,
    federated: Federated,
    detections: DetectionsOrTable,
    *,
    of: Kind = "bbox",
) -> LvisScores:
    """LVIS's figures of boxes or masks. Raises InputError as `tabulate`."""
    table = tabulate(annotations, detections, with_masks=of == "segm")
    matches = match_lvis(annotations, federated, table, of=of)
    full = accumulate(matches)
    groups = {
        f"ap_{name}": full.mean_precision(
            labels=[k for k, rated in enumerate(federated.frequencies) if rated == letter]
        )
        for letter, name in FREQUENCIES.items()
    }
    return LvisScores(
        ap=full.mean_precision(),
        ap50=full.mean_precision(threshold=matches.threshold(0.5)),
        ap75=full.mean_precision(threshold=matches.threshold(0.75)),
        ar300=full.mean_recall(),
        **groups,
        **full.by_area(),
        per_class=tuple(
            full.mean_precision(labels=[label]) for label in range(len(annotations.categories))
        ),
        num_images=len(annotations),
        num_detections=len(table),
        num_judged=len(matches.scores),
    )


def match_lvis(
    annotations: Annotations, federated: Federated, table: DetectionTable, *, of: Kind = "bbox"
) -> MatchTable:
    """Matches of the detections that LVIS judges."""
    classes = len(annotations.categories)
    boxes = _as_lvis(annotations)
    kept = _best_of_images(table, MOST_PER_IMAGE)
    sizes = mask_areas(table) if of == "segm" else box_areas(table)
    kept = kept[sizes[kept] > 0]  # lvis-api leaves out what has no area, boxes and detections
    codes = table.rows[kept] * classes + table.labels[kept]
    held = np.repeat(np.arange(len(annotations)), np.diff(boxes.offsets)) * classes + boxes.labels
    kept = kept[np.isin(codes, held) | np.isin(codes, federated.negative)]
    judged = table.keep(kept)
    codes = judged.rows * classes + judged.labels
    return match_detections(
        boxes, judged, most_per_class=None, of=of, unjudged=np.isin(codes, federated.not_exhaustive)
    )


def _as_lvis(annotations: Annotations) -> Annotations:
    """Leave out boxes of no area, and crowds, which LVIS does not know."""
    solid = np.flatnonzero(annotations.areas > 0)
    rows = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    counts = np.bincount(rows[solid], minlength=len(annotations))
    return replace(
        annotations,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=annotations.boxes[solid],
        labels=annotations.labels[solid],
        areas=annotations.areas[solid],
        crowd=np.zeros(len(solid), dtype=np.bool_),
        masks=annotations.masks.keep(solid) if annotations.masks is not None else None,
        sides_wh=annotations.sides_wh[solid] if annotations.sides_wh is not None else None,
    )


def _best_of_images(table: DetectionTable, most: int) -> NDArray[np.int64]:
    """Numbers of each image's best scores, in the order they came."""
    order = np.lexsort((np.arange(len(table)), -table.scores, table.rows))
    starts = np.flatnonzero(np.diff(table.rows[order], prepend=-1))
    ranks = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return np.sort(order[ranks < most])


def _codes(
    images: Sequence[dict[str, Any]], key: str, label_of: dict[int, int], where: Path
) -> NDArray[np.int64]:
    codes = []
    for row, image in enumerate(images):
        ids = image.get(key)
        if not isinstance(ids, list):
            raise DatasetError(
                f"{where}: images[{row}] (id {image['id']}) needs a list `{key}` to be scored as "
                f"LVIS v1, got {reprlib.repr(ids)}; score it as COCO instead"
            )
        for category_id in ids:
            if type(category_id) is not int or category_id not in label_of:
                raise DatasetError(
                    f"{where}: images[{row}] (id {image['id']}) has "
                    f"{reprlib.repr(category_id)} in `{key}`, "
                    "which is not a category of the file"
                )
            codes.append(row * len(label_of) + label_of[category_id])
    return np.unique(np.array(codes, dtype=np.int64))

"""The LVIS v1 protocol (arXiv 1908.03195, section 3; checked against the official lvis-api).

Not every class is annotated in every image: an image says which classes it holds, which it
surely does not hold (`neg_category_ids`) and which it holds but not all of
(`not_exhaustive_category_ids`). Detections of other classes are left out; those of the last kind
are never wrong. The best 300 detections of an image are scored, of all classes together.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.errors import DatasetError
from cachedet.evaluation.detection_table import DetectionsOrTable, tabulate
from cachedet.evaluation.matches import best_of_groups
from cachedet.evaluation.metrics import Kind, accumulate_lvis
from cachedet.evaluation.overlaps import box_areas, mask_areas
from cachedet.evaluation.precision import to_json_values
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
    """LVIS's 13 figures, in its order (0..1; NaN where LVIS says -1), and AP per class."""

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
    """LVIS's own fields of an annotation file that `annotations` was read from, all or some
    classes of it.

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
        negative=_codes(content, "neg_category_ids", label_of, where),
        not_exhaustive=_codes(content, "not_exhaustive_category_ids", label_of, where),
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
    classes = len(annotations.categories)
    boxes = _as_lvis(annotations)
    held = np.repeat(np.arange(len(annotations)), np.diff(boxes.offsets)) * classes + boxes.labels
    said = np.union1d(held, federated.negative)  # classes of images that something is known about
    kept = best_of_groups(table, table.rows, most=MOST_PER_IMAGE)
    sizes = mask_areas(table) if of == "segm" else box_areas(table)
    kept = kept[sizes[kept] > 0]  # lvis-api leaves out what has no area, boxes and detections
    judged = table.keep(kept[np.isin(table.rows[kept] * classes + table.labels[kept], said)])
    fields = {"neg_category_ids": said, "not_exhaustive_category_ids": federated.not_exhaustive}
    full = accumulate_lvis(
        boxes,
        judged,
        of=of,
        image_fields=[
            {name: _labels_of(row, codes, classes) for name, codes in fields.items()}
            for row in range(len(annotations))
        ],
        frequencies=federated.frequencies,
    )
    return LvisScores(
        **full.named(LvisScores),
        per_class=tuple(full.ap_of_class(label) for label in range(classes)),
        num_images=len(annotations),
        num_detections=len(table),
        num_judged=len(judged),
    )


def _labels_of(row: int, codes: NDArray[np.int64], classes: int) -> list[int]:
    first, last = np.searchsorted(codes, [row * classes, (row + 1) * classes])
    labels: list[int] = (codes[first:last] - row * classes).tolist()
    return labels


def _as_lvis(annotations: Annotations) -> Annotations:
    """Leave out boxes of no area, and crowds, which LVIS does not know."""
    solid = annotations.keep_boxes(annotations.areas > 0)
    return replace(solid, crowd=np.zeros(len(solid.boxes), dtype=np.bool_))


def _codes(
    content: dict[str, Any], key: str, label_of: dict[int, int], where: Path
) -> NDArray[np.int64]:
    codes = []
    known = {entry["id"] for entry in content["categories"]}
    for row, image in enumerate(content["images"]):
        ids = image.get(key)
        if not isinstance(ids, list):
            raise DatasetError(
                f"{where}: images[{row}] (id {image['id']}) needs a list `{key}` to be scored as "
                f"LVIS v1, got {reprlib.repr(ids)}; score it as COCO instead"
            )
        for category_id in ids:
            if type(category_id) is not int or category_id not in known:
                raise DatasetError(
                    f"{where}: images[{row}] (id {image['id']}) has "
                    f"{reprlib.repr(category_id)} in `{key}`, "
                    "which is not a category of the file"
                )
            if category_id in label_of:
                codes.append(row * len(label_of) + label_of[category_id])
    return np.unique(np.array(codes, dtype=np.int64))

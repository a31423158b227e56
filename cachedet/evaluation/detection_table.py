"""Detections of a whole data set as columns in double precision, checked once.

Letters: D detections, N images, K classes, S cells of a mask's side.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from cachedet.data.box_columns import LARGEST
from cachedet.data.json_files import load_json
from cachedet.data.masks import NO_MASK, encode_segmentation, paste_masks, rle_of
from cachedet.data.repairs import note_numbered, numbered, reach_beyond
from cachedet.errors import InputError
from cachedet.structures import Annotations, Detections


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionTable:
    """All detections of a data set, in the order they came, boxes as COCO's files write them."""

    rows: NDArray[np.int64]  # (D,) image's row in the ground truth
    labels: NDArray[np.int64]  # (D,) 0..K-1
    xywh: NDArray[np.float64]  # (D, 4) pixels of the image
    scores: NDArray[np.float64]  # (D,)
    masks: tuple[dict[str, Any], ...] | None = None  # D RLEs of the images' sizes
    notes: tuple[str, ...] = ()  # what was mended in the file they came from

    def __len__(self) -> int:
        return len(self.scores)

    def keep(self, which: NDArray[Any]) -> DetectionTable:
        """Only these (numbers or flags), in the order given."""
        numbers = np.arange(len(self))[which]
        return DetectionTable(
            rows=self.rows[numbers],
            labels=self.labels[numbers],
            xywh=self.xywh[numbers],
            scores=self.scores[numbers],
            masks=None if self.masks is None else tuple(self.masks[n] for n in numbers),
        )


_SAME: Mapping[int, int | None] = MappingProxyType({})
DetectionsOrTable = Sequence[Detections] | DetectionTable
"""What every analysis of this room takes: a detector's output or a table made before."""


def has_masks(detections: DetectionsOrTable) -> bool:
    """Whether some detection brings a mask."""
    if isinstance(detections, DetectionTable):
        return detections.masks is not None
    return any(of_image.masks is not None for of_image in detections)


def tabulate(
    annotations: Annotations, detections: DetectionsOrTable, *, with_masks: bool = False
) -> DetectionTable:
    """Detections in pixels of the images as a table; a table passes through unchanged.

    Raises InputError on an unknown image or label, or a box or score that is NaN or Inf.
    """
    if isinstance(detections, DetectionTable):
        return detections
    row_of = {image_id: row for row, image_id in enumerate(annotations.image_ids.tolist())}
    for each in detections:
        _require_valid(each, row_of, num_classes=len(annotations.categories))
    boxes = _joined([each.boxes.double().cpu().numpy() for each in detections], np.float64, (0, 4))
    scores = [each.scores.double().cpu().numpy() for each in detections]
    masks: list[dict[str, Any]] = []
    for each in detections if with_masks else ():
        if each.masks is None and len(each):
            raise InputError(
                f"detections of image id {each.image_id} have no masks, others have; give all "
                "of them masks, or none"
            )
        size_hw = annotations.size_of(row_of[each.image_id])
        masks += [rle_of(code, size_hw) for code in paste_masks(each, size_hw)]
    rows = [row_of[each.image_id] for each in detections for _ in range(len(each))]
    return DetectionTable(
        rows=np.array(rows, dtype=np.int64),
        labels=_joined([each.labels.cpu().numpy() for each in detections], np.int64, (0,)),
        xywh=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
        scores=_joined(scores, np.float64, (0,)),
        masks=tuple(masks) if with_masks else None,
    )


def read_results(
    path: Path,
    annotations: Annotations,
    *,
    option: str = "--detections",
    id_of: Mapping[int, int | None] = _SAME,
) -> DetectionTable:
    """A COCO (or LVIS) results file: a JSON list of image_id, category_id, score and bbox or mask.

    `id_of` is the class of `annotations` that each class of the file became; None: left out.

    Raises InputError where it is missing (`option` named it), is no such list, or names unknown
    images or classes.
    """
    entries = load_json(path, option=option, what="a COCO results file")
    if not isinstance(entries, list):
        got = type(entries).__name__
        if isinstance(entries, dict) and entries:
            got += f" with {', '.join(key[:40] for key in list(entries)[:5])}"
        if isinstance(entries, dict) and "annotations" in entries:
            got += "; an annotation file is given as --annotations"
        raise InputError(
            f"{path} is not a COCO results file: expected a list of detections, got a {got}"
        )
    return table_of_results(annotations, entries, where=str(path), id_of=id_of)


def table_of_results(
    annotations: Annotations,
    entries: Sequence[Any],
    *,
    where: str = "results",
    id_of: Mapping[int, int | None] = _SAME,
) -> DetectionTable:
    """Rows of a COCO results file as a table; boxes of masks alone are the masks' own.

    Raises InputError, which names `where` and the first bad row.
    """
    for number, entry in enumerate(entries):
        _require_result(entry, f"{where}[{number}]")
    row_of = {image_id: row for row, image_id in enumerate(annotations.image_ids.tolist())}
    mended: list[str] = []
    rows = _look_up(entries, "image_id", row_of, "an image", where, mended)
    label_of = annotations.categories.label_of()
    none = len(label_of)  # the label of classes that are left out
    label_of |= {old: none if new is None else label_of[new] for old, new in id_of.items()}
    labels = _look_up(entries, "category_id", label_of, "a class", where, mended)
    masks = _masks_of(entries, annotations, rows, where)
    boxes = [entry.get("bbox") or None for entry in entries]
    if masks is not None and None in boxes:
        of_masks = coco_mask.toBbox(list(masks)).tolist()
        boxes = [
            of_mask if box is None else box for box, of_mask in zip(boxes, of_masks, strict=True)
        ]
    table = DetectionTable(
        rows=rows,
        labels=labels,
        xywh=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        scores=np.array([entry["score"] for entry in entries], dtype=np.float64),
        masks=masks,
    )
    notes = note_numbered(mended)
    if gone := int((labels == none).sum()):
        table = table.keep(labels < none)
        notes.append(f"detections of classes that are left out, not scored: {gone}")
    return replace(table, notes=tuple(f"{where}: {note}" for note in notes))


def count_oddities(
    annotations: Annotations, detections: DetectionsOrTable, *, most_per_class: int = 100
) -> dict[str, int]:
    """What is scored as it stands but is seldom meant, by name: a line each for the user."""
    table = tabulate(annotations, detections)
    _, _, width, height = table.xywh.T
    entries = np.column_stack([table.rows, table.labels, table.xywh, table.scores])
    groups = table.rows * len(annotations.categories) + table.labels
    in_group = np.unique(groups, return_counts=True)[1]
    beyond = reach_beyond(table.xywh, annotations.sizes_hw[table.rows])
    counts = {
        "boxes beyond their image": int(beyond.sum()),
        "boxes without area": int(((width <= 0) | (height <= 0)).sum()),
        "exact duplicates": len(table) - len(np.unique(entries, axis=0)),
        "scores outside 0..1": int(((table.scores < 0) | (table.scores > 1)).sum()),
        "past the limit of a class and image": int(np.maximum(in_group - most_per_class, 0).sum()),
        "images without detections": len(annotations) - len(np.unique(table.rows)),
    }
    if annotations.masks is not None and table.masks is not None:
        without = int(annotations.masks.are_missing.sum())
        counts["annotations without a mask, left out of the figures of masks"] = without
    return counts


def _joined(parts: list[NDArray[Any]], dtype: Any, empty: tuple[int, ...]) -> NDArray[Any]:
    return np.concatenate([np.zeros(empty, dtype=dtype), *parts]).astype(dtype)


def _require_valid(detections: Detections, row_of: dict[int, int], *, num_classes: int) -> None:
    if detections.image_id not in row_of:
        raise InputError(
            f"detections for image id {detections.image_id}, which is not in the ground truth"
        )
    where = f"detections of image id {detections.image_id}"
    if not bool(detections.boxes.isfinite().all()) or not bool(detections.scores.isfinite().all()):
        raise InputError(f"{where} hold a box or score that is NaN or Inf")
    if not bool(((detections.labels >= 0) & (detections.labels < num_classes)).all()):
        raise InputError(f"{where} hold a label outside 0..{num_classes - 1}")


def _require_result(entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise InputError(f"{where} is not an object, got {reprlib.repr(entry)}")
    if not _is_finite(entry.get("score")):
        score = reprlib.repr(entry.get("score"))
        raise InputError(f"{where} needs a finite `score`, got {score}")
    box = entry.get("bbox")
    if box in (None, []) and entry.get("segmentation"):
        return
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        raise InputError(
            f"{where} needs a finite `bbox` [x, y, width, height] or a `segmentation`, "
            f"got {reprlib.repr(box)}, {reprlib.repr(entry.get('segmentation'))}"
        )


def _look_up(
    entries: Sequence[dict[str, Any]],
    key: str,
    index_of: dict[int, int],
    what: str,
    where: str,
    mended: list[str],  # takes what was text or a float
) -> NDArray[np.int64]:
    ids = numbered(entries, key)
    for number, (value, entry) in enumerate(zip(ids, entries, strict=True)):
        if type(value) is not type(entry.get(key)):
            mended.append(f"{key} {entry[key]!r} of detection {number}")
    known = [index_of.get(value, -1) if type(value) is int else -1 for value in ids]  # bool is none
    indices = np.array(known, dtype=np.int64)
    unknown = np.flatnonzero(indices < 0)
    if len(unknown):
        first = int(unknown[0])
        wrong = {reprlib.repr(ids[number]) for number in unknown.tolist()}
        kind = "" if type(ids[first]) is int else ", whose ids are whole numbers"
        raise InputError(
            f"{where}[{first}] has {key} {reprlib.repr(ids[first])}, which is not {what} of the "
            f"annotations{kind}; "
            f"{len(unknown)} detections are like this, {len(wrong)} ids. The annotations know "
            f"{len(index_of)} ids from {min(index_of)} to {max(index_of)}: score against the file "
            "the detections were made for"
        )
    return indices


def _masks_of(
    entries: Sequence[dict[str, Any]], annotations: Annotations, rows: NDArray[np.int64], where: str
) -> tuple[dict[str, Any], ...] | None:
    """The RLEs where each row has one. pycocotools writes beyond its memory on bad ones."""
    with_mask = sum(bool(entry.get("segmentation")) for entry in entries)
    if not with_mask:
        return None
    masks = []
    for number, (entry, row) in enumerate(zip(entries, rows.tolist(), strict=True)):
        size_hw = annotations.size_of(row)
        try:
            code = encode_segmentation(entry.get("segmentation"), size_hw)
        except ValueError as error:
            raise InputError(f"{where}[{number}]: `segmentation`: {error}") from error
        if code == NO_MASK:
            raise InputError(
                f"{where}[{number}] has no `segmentation`, but {with_mask} detections have one; "
                "give all of them a mask, or none"
            )
        masks.append(rle_of(code, size_hw))
    return tuple(masks)


def _is_finite(value: Any) -> bool:
    """Areas of larger ones would be infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST

"""COCO JSON (LVIS files too) into arrays: the only place that reads xywh boxes.

What is wrong with a file is refused, mended or counted as `repairs.py` states; nothing is dropped
that `Findings` does not name.
"""

from __future__ import annotations

import posixpath
import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.data.box_columns import LARGEST, BoxColumns
from cachedet.data.image_files import ImageFiles
from cachedet.data.json_files import load_json
from cachedet.data.masks import NO_MASK, encode_segmentation, is_blank
from cachedet.data.repairs import Findings, number_ids, place_of, whole_number
from cachedet.data.sections import listed
from cachedet.errors import DatasetError
from cachedet.progress import count_of
from cachedet.structures import Annotations, CategoryMap, MaskCodes

_SECTIONS = ("images", "annotations", "categories")


@dataclass(frozen=True, kw_only=True, eq=False)
class CocoDataset:
    """A data set: where its images lie, and their annotations."""

    files: ImageFiles
    annotations: Annotations
    counts: dict[str, int]  # what was read, mended and dropped, by name
    notes: tuple[str, ...] = ()  # what a person should look at in the annotations

    @property
    def images(self) -> Path:
        """The folder of the images. Raises DatasetError where they lie in none."""
        return self.files.folder

    def path_of(self, row: int) -> Path:
        """The image file of a row."""
        return self.images / self.annotations.file_names[row]


def categories_of(content: dict[str, Any], where: Path) -> CategoryMap:
    """The classes of a file, without a look at anything else in it. Raises DatasetError."""
    number_ids(content)
    return _read_categories(content["categories"], where)


def annotations_of(
    content: dict[str, Any], *, where: Path, keep_all: bool = False
) -> tuple[Annotations, Findings]:
    """The ground truth in what `load_annotations` gave, and what was found in it.

    `keep_all`, for scoring as the official tools do, keeps boxes without area, of negative sides or
    outside their image, and sides to the last digit; NaN and Inf are dropped either way. It needs
    neither names of image files nor, for boxes, sizes: those are 0 where there are none.

    Raises DatasetError. Ids in `content` that are text of whole numbers become numbers.
    """
    notes = number_ids(content)
    categories = _read_categories(content["categories"], where)
    notes += _note_categories(content["categories"], categories)
    rows = content["images"]
    if not rows:
        raise DatasetError(f"{where}: `images` is empty, expected at least one image")
    image_ids = _ids(rows, "images", where)
    if keep_all:
        file_names = tuple(str(row.get("file_name") or f"image id {row['id']}") for row in rows)
        sizes = [_size_of(row) or (0, 0) for row in rows]
    else:
        file_names = tuple(_file_name(row, index, where) for index, row in enumerate(rows))
        _require_unique(map(posixpath.normpath, file_names), "file_name", "images", where)
        sizes = [_size(row, index, where) for index, row in enumerate(rows)]
    sizes_hw = np.array(sizes, dtype=np.int64)
    _ids(content["annotations"], "annotations", where)
    boxes = BoxColumns.read(
        content["annotations"], image_ids, categories, where, as_they_stand=keep_all
    )
    kept, found = boxes.finite(sizes_hw) if keep_all else boxes.usable(sizes_hw, where)
    order = np.flatnonzero(kept)[np.argsort(boxes.rows[kept], kind="stable")]
    per_image = np.bincount(boxes.rows[order], minlength=len(rows))
    masks, of_masks = _read_masks(content["annotations"], order, boxes.rows, sizes_hw)
    annotations = Annotations(
        image_ids=image_ids,
        file_names=file_names,
        sizes_hw=sizes_hw,
        offsets=np.concatenate([[0], np.cumsum(per_image)]).astype(np.int64),
        boxes=boxes.xyxy[order],
        labels=boxes.labels[order],
        crowd=boxes.crowd[order],
        areas=boxes.areas[order],
        categories=categories,
        masks=masks,
        sides_wh=boxes.xywh[order, 2:] if keep_all else None,
    )
    counts = {
        "images": len(rows),
        "boxes": len(order),
        "masks": 0 if masks is None else int((~masks.are_missing).sum()),
        "crowd boxes": int(annotations.crowd.sum()),
        "images without boxes": int((per_image == 0).sum()),
        **of_masks.counts,
        **found.counts,
    }
    notes += [*found.notes, *of_masks.notes]
    return annotations, Findings(counts=counts, notes=tuple(notes))


def _read_masks(
    entries: Sequence[dict[str, Any]],
    order: NDArray[np.int64],
    rows: NDArray[np.int64],
    sizes_hw: NDArray[np.int64],
) -> tuple[MaskCodes | None, Findings]:
    """Masks of the annotations numbered `order`; None where none can be used."""
    codes = []
    unusable: list[str] = []
    blank: list[str] = []
    for number in order.tolist():
        height, width = sizes_hw[rows[number]].tolist()
        named = place_of(entries[number])
        try:
            code = encode_segmentation(entries[number].get("segmentation"), (height, width))
        except ValueError as error:  # COCO itself holds polygons of two points
            code = NO_MASK
            unusable.append(f"{named}: {error}")
        if code != NO_MASK and is_blank(code):
            blank.append(named)
        codes.append(code)
    counts = {"unusable masks dropped": len(unusable), "empty masks": len(blank)}
    notes = []
    if unusable:
        were = "was" if len(unusable) == 1 else "were"
        dropped = f"{count_of(len(unusable), 'mask')} cannot be used and {were} dropped"
        notes.append(f"{dropped}, the first of {unusable[0]}")
    if blank:
        notes.append(
            f"{count_of(len(blank), 'mask')} without a pixel inside the image, the first of "
            f"{blank[0]}: such masks are not trained on, and matched by nothing"
        )
    masks = MaskCodes.join(codes) if any(codes) else None
    return masks, Findings(counts=counts, notes=tuple(notes))


def load_annotations(path: Path) -> dict[str, Any]:
    """The sections of a COCO file as lists of objects. Raises DatasetError."""
    content = load_json(path, option="--annotations", what="a COCO JSON file")
    if not isinstance(content, dict):
        raise DatasetError(
            f"{path} is not COCO: expected an object with {', '.join(_SECTIONS)}, "
            f"got a {type(content).__name__}{_like_results(content)}"
        )
    for section in _SECTIONS:
        if not isinstance(content.get(section), list):
            raise DatasetError(f"{path} is not COCO: {_describe_section(content, section)}")
        for index, entry in enumerate(content[section]):
            if not isinstance(entry, dict):
                got = reprlib.repr(entry)
                raise DatasetError(f"{path}: {section}[{index}] is not an object, got {got}")
    return content


def _like_results(content: Any) -> str:
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(first, dict) and "score" in first:
        return "; it seems to be a results file, which `cachedet eval` takes as --detections"
    return ""


def _describe_section(content: dict[str, Any], section: str) -> str:
    """What is there in the place of a list."""
    if section in content:
        kind = {dict: "an object", type(None): "null"}.get(type(content[section]))
        kind = kind or f"a {type(content[section]).__name__}"
        return f"`{section}` is {kind}, expected a list of objects"
    keys = ", ".join(key[:40] for key in list(content)[:10])
    return f"the list `{section}` is missing; it has {keys or 'no keys'}"


def _read_categories(entries: Sequence[dict[str, Any]], where: Path) -> CategoryMap:
    if not entries:
        raise DatasetError(f"{where}: `categories` is empty, expected at least one class")
    _ids(entries, "categories", where)
    named = sorted((entry["id"], _name_of(entry)) for entry in entries)
    return CategoryMap(ids=tuple(i for i, _ in named), names=tuple(name for _, name in named))


def _name_of(category: dict[str, Any]) -> str:
    """Its id where it has none."""
    name = category.get("name")
    return str(category["id"] if name is None else name)


def _note_categories(entries: Sequence[dict[str, Any]], categories: CategoryMap) -> list[str]:
    nameless = [entry["id"] for entry in entries if entry.get("name") is None]
    notes = []
    if nameless:
        notes.append(
            f"without a name in `categories`: {len(nameless)}, the first of id {nameless[0]}; "
            "the id is taken as the name"
        )
    first: dict[str, int] = {}
    for number, name in zip(categories.ids, categories.names, strict=True):
        if first.setdefault(name, number) != number:
            both = f"category ids {first[name]} and {number}"
            notes.append(f"{both} have the same name {name!r}; they stay two classes")
            break
    return notes


def _ids(entries: Sequence[dict[str, Any]], section: str, where: Path) -> NDArray[np.int64]:
    ids = [entry.get("id") for entry in entries]
    for index, value in enumerate(ids):
        if type(value) is not int or abs(value) >= LARGEST:
            raise DatasetError(
                f"{where}: {section}[{index}] needs an integer `id`, got {reprlib.repr(value)}"
            )
    _require_unique(ids, "id", section, where)
    return np.array(ids, dtype=np.int64)


def _require_unique(values: Iterable[Any], key: str, section: str, where: Path) -> None:
    twice = [(value, times) for value, times in Counter(values).items() if times > 1]
    if twice:
        places = [f"{reprlib.repr(value)}, {times} times" for value, times in twice]
        raise DatasetError(
            f"{where}: {section} holds a `{key}` more than once: {len(twice)} of them "
            f"({listed(places)}). {_ONCE[key]}"
        )


_ONCE = {
    "id": "Number them anew, each by itself",
    "file_name": "Give each image one entry, and all its boxes the id of that entry",
}


def _file_name(entry: dict[str, Any], index: int, where: Path) -> str:
    name = entry.get("file_name")
    if name is None and isinstance(entry.get("coco_url"), str):
        name = "/".join(entry["coco_url"].split("/")[-2:])  # LVIS: .../train2017/000000391895.jpg
    if not isinstance(name, str) or not name:
        raise DatasetError(
            f"{where}: images[{index}] (id {entry.get('id')}) needs a `file_name`, "
            f"got {reprlib.repr(name)}"
        )
    return name


def _size(entry: dict[str, Any], index: int, where: Path) -> tuple[int, int]:
    size = _size_of(entry)
    if size is None:
        given = [f"{side}={reprlib.repr(entry.get(side))}" for side in ("height", "width")]
        raise DatasetError(
            f"{where}: images[{index}] (id {entry['id']}) needs `height` and `width` in pixels, "
            f"got {', '.join(given)}"
        )
    return size


def _size_of(entry: dict[str, Any]) -> tuple[int, int] | None:
    """None where it is no size."""
    sides = []
    for value in (entry.get("height"), entry.get("width")):
        side = value if type(value) is int else whole_number(value)
        if side is None or not 0 < side < LARGEST:
            return None
        sides.append(side)
    return sides[0], sides[1]

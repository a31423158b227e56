"""COCO JSON (LVIS files too) into arrays: the only place that reads xywh boxes."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.data.file_names import require_inside
from cachedet.data.masks import NO_MASK, encode_segmentation
from cachedet.errors import DatasetError
from cachedet.structures import Annotations, CategoryMap, MaskCodes

_LARGEST = 2**63
_SECTIONS = ("images", "annotations", "categories")


@dataclass(frozen=True, kw_only=True, eq=False)
class CocoDataset:
    """A data set on disk: a folder of images and their annotations."""

    images: Path
    annotations: Annotations
    counts: dict[str, int]  # what was read and what was dropped, by name

    def path_of(self, row: int) -> Path:
        """The image file of a row."""
        return self.images / self.annotations.file_names[row]


def read_coco(*, annotations: Path, images: Path, follow_links: bool = False) -> CocoDataset:
    """Read a COCO annotation file. The image files themselves are not opened here.

    Labels follow the order of category ids. Crowd boxes are kept and flagged, images without
    boxes are kept as negatives. Boxes without area, with NaN or Inf, or wholly outside their
    image are dropped and counted; a box whose mask cannot be used stays, without a mask.

    Raises DatasetError: a missing file, folder or key, a duplicate id, an annotation of an unknown
    image or category, no images at all, or a path that leaves the image folder (by a link only
    where `follow_links` does not allow it).
    """
    if not images.is_dir():
        raise DatasetError(f"--images expects a folder of images; there is no folder {images}")
    if next(images.iterdir(), None) is None:
        raise DatasetError(f"--images {images} is an empty folder, expected images in it")
    described, counts = annotations_of(load_annotations(annotations), where=annotations)
    require_inside(described.file_names, images, annotations, follow_links=follow_links)
    return CocoDataset(images=images, annotations=described, counts=counts)


def annotations_of(
    content: dict[str, Any], *, where: Path, keep_all: bool = False
) -> tuple[Annotations, dict[str, int]]:
    """The ground truth in what `load_annotations` gave, and what was read and dropped, by name.

    `keep_all`, for scoring as the official tools do, keeps boxes without area or outside their
    image, and sides to the last digit; NaN and Inf are dropped either way. Raises DatasetError.
    """
    categories = _read_categories(content["categories"], where)
    rows = content["images"]
    if not rows:
        raise DatasetError(f"{where}: `images` is empty, expected at least one image")
    image_ids = _ids(rows, "images", where)
    file_names = tuple(_file_name(row, index, where) for index, row in enumerate(rows))
    _require_unique(file_names, "file_name", "images", where)
    sizes_hw = np.array(
        [_size(row, index, where) for index, row in enumerate(rows)], dtype=np.int64
    )
    boxes = _Boxes.read(content["annotations"], image_ids, categories, where)
    kept, dropped = boxes.finite() if keep_all else boxes.usable(sizes_hw)
    order = np.flatnonzero(kept)[np.argsort(boxes.rows[kept], kind="stable")]
    per_image = np.bincount(boxes.rows[order], minlength=len(rows))
    masks, unusable = _read_masks(content["annotations"], order, boxes.rows, sizes_hw)
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
        "masks": 0 if masks is None else int((np.diff(masks.offsets) > 0).sum()),
        "crowd boxes": int(annotations.crowd.sum()),
        "images without boxes": int((per_image == 0).sum()),
        "unusable masks dropped": unusable,
        **dropped,
    }
    return annotations, counts


@dataclass(frozen=True, kw_only=True, eq=False)
class _Boxes:
    """All annotations as columns, in the order of the file."""

    rows: NDArray[np.int64]  # (M,) image
    labels: NDArray[np.int64]
    xywh: NDArray[np.float64]  # (M, 4)
    xyxy: NDArray[np.float64]  # (M, 4)
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    @classmethod
    def read(
        cls,
        entries: Sequence[dict[str, Any]],
        image_ids: NDArray[np.int64],
        categories: CategoryMap,
        where: Path,
    ) -> _Boxes:
        _ids(entries, "annotations", where)
        row_of = {image_id: row for row, image_id in enumerate(image_ids.tolist())}
        bboxes = _column(entries, "bbox", _is_box, "`bbox` [x, y, width, height]", where)
        numbers = np.fromiter(chain.from_iterable(bboxes), dtype=np.float64, count=4 * len(bboxes))
        xywh = numbers.reshape(-1, 4)
        crowd = _column(entries, "iscrowd", (0, 1, None).__contains__, "0 or 1 as `iscrowd`", where)
        return cls(
            rows=_look_up(entries, "image_id", row_of, where),
            labels=_look_up(entries, "category_id", categories.label_of(), where),
            xywh=xywh,
            xyxy=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
            areas=_areas(entries, xywh, where),
            crowd=np.array([bool(flag) for flag in crowd], dtype=np.bool_),
        )

    def finite(self) -> tuple[NDArray[np.bool_], dict[str, int]]:
        """Which boxes are numbers, and how many are not."""
        finite = np.asarray(np.isfinite(self.xyxy).all(axis=1))
        return finite, {"boxes of NaN or Inf dropped": int((~finite).sum())}

    def usable(self, sizes_hw: NDArray[np.int64]) -> tuple[NDArray[np.bool_], dict[str, int]]:
        """Which boxes can teach, and how many cannot, by reason."""
        x1, y1, x2, y2 = self.xyxy.T
        height, width = sizes_hw[self.rows].T
        solid = np.isfinite(self.xyxy).all(axis=1) & (x2 > x1) & (y2 > y1)
        inside = (x2 > 0) & (y2 > 0) & (x1 < width) & (y1 < height)
        partly = solid & inside & ((x1 < 0) | (y1 < 0) | (x2 > width) | (y2 > height))
        counts = {
            "degenerate boxes dropped": int((~solid).sum()),
            "boxes outside the image dropped": int((solid & ~inside).sum()),
            "boxes partly outside": int(partly.sum()),
        }
        return solid & inside, counts


def _read_masks(
    entries: Sequence[dict[str, Any]],
    order: NDArray[np.int64],
    rows: NDArray[np.int64],
    sizes_hw: NDArray[np.int64],
) -> tuple[MaskCodes | None, int]:
    """Masks of the annotations numbered `order` (None where none has one), and how many failed."""
    if not any(entry.get("segmentation") for entry in entries):
        return None, 0
    codes, unusable = [], 0
    for number in order.tolist():
        height, width = sizes_hw[rows[number]].tolist()
        try:
            codes.append(encode_segmentation(entries[number].get("segmentation"), (height, width)))
        except ValueError:  # COCO itself holds polygons of two points
            codes.append(NO_MASK)
            unusable += 1
    return MaskCodes.join(codes), unusable


def load_json(path: Path, *, option: str, what: str) -> Any:
    """What a JSON file of the user's holds. Raises DatasetError, which names `option`."""
    if not path.is_file():
        raise DatasetError(f"{option} expects {what}; there is no file {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON in UTF-8: {error}") from error


def load_annotations(path: Path) -> dict[str, Any]:
    """The sections of a COCO file as lists of objects. Raises DatasetError."""
    content = load_json(path, option="--annotations", what="a COCO JSON file")
    if not isinstance(content, dict):
        raise DatasetError(
            f"{path} is not COCO: expected an object with {', '.join(_SECTIONS)}, "
            f"got a {type(content).__name__}"
        )
    for section in _SECTIONS:
        if not isinstance(content.get(section), list):
            keys = ", ".join(map(str, list(content)[:10])) or "no keys"
            raise DatasetError(
                f"{path} is not COCO: the list `{section}` is missing; it has {keys}"
            )
        for index, entry in enumerate(content[section]):
            if not isinstance(entry, dict):
                raise DatasetError(f"{path}: {section}[{index}] is not an object, got {entry!r}")
    return content


def _read_categories(entries: Sequence[dict[str, Any]], where: Path) -> CategoryMap:
    if not entries:
        raise DatasetError(f"{where}: `categories` is empty, expected at least one class")
    _ids(entries, "categories", where)
    named = sorted((entry["id"], str(entry.get("name", entry["id"]))) for entry in entries)
    return CategoryMap(ids=tuple(i for i, _ in named), names=tuple(name for _, name in named))


def _ids(entries: Sequence[dict[str, Any]], section: str, where: Path) -> NDArray[np.int64]:
    ids = [entry.get("id") for entry in entries]
    for index, value in enumerate(ids):
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= _LARGEST:
            raise DatasetError(f"{where}: {section}[{index}] needs an integer `id`, got {value!r}")
    _require_unique(ids, "id", section, where)
    return np.array(ids, dtype=np.int64)


def _require_unique(values: Iterable[Any], key: str, section: str, where: Path) -> None:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise DatasetError(f"{where}: {section} holds {key} {value!r} more than once")
        seen.add(value)


def _file_name(entry: dict[str, Any], index: int, where: Path) -> str:
    name = entry.get("file_name")
    if name is None and isinstance(entry.get("coco_url"), str):
        name = "/".join(entry["coco_url"].split("/")[-2:])  # LVIS: .../train2017/000000391895.jpg
    if not isinstance(name, str) or not name:
        raise DatasetError(
            f"{where}: images[{index}] (id {entry.get('id')}) needs a `file_name`, got {name!r}"
        )
    return name


def _size(entry: dict[str, Any], index: int, where: Path) -> tuple[int, int]:
    size = entry.get("height"), entry.get("width")
    if not all(isinstance(side, int) and 0 < side < _LARGEST for side in size):
        raise DatasetError(
            f"{where}: images[{index}] (id {entry['id']}) needs `height` and `width` in pixels, "
            f"got height={size[0]!r}, width={size[1]!r}"
        )
    return entry["height"], entry["width"]


def _look_up(
    entries: Sequence[dict[str, Any]], key: str, index_of: dict[Any, int], where: Path
) -> NDArray[np.int64]:
    values = [entry.get(key) for entry in entries]
    indices = np.array(
        [index_of.get(value, -1) if isinstance(value, int | float) else -1 for value in values],
        dtype=np.int64,
    )
    unknown = np.flatnonzero(indices < 0)
    if len(unknown):
        first = int(unknown[0])
        raise DatasetError(
            f"{where}: annotation id {entries[first]['id']} has {key} {values[first]!r}, which is "
            f"not in the file; {len(unknown)} annotations are like this"
        )
    return indices


def _column(
    entries: Sequence[dict[str, Any]],
    key: str,
    is_valid: Callable[[Any], bool],
    needs: str,
    where: Path,
) -> list[Any]:
    """One key of all annotations. Raises DatasetError on the first value that is not valid."""
    values = [entry.get(key) for entry in entries]
    for entry, value in zip(entries, values, strict=True):
        if not is_valid(value):
            raise DatasetError(
                f"{where}: annotation id {entry['id']} needs {needs}, got {reprlib.repr(value)}"
            )
    return values


def _areas(
    entries: Sequence[dict[str, Any]], xywh: NDArray[np.float64], where: Path
) -> NDArray[np.float64]:
    """The file's; the box's where it has none (or NaN, as table libraries write it)."""
    areas = xywh[:, 2] * xywh[:, 3]
    given = _column(entries, "area", _is_area, "a number as `area`", where)
    for index, area in enumerate(given):
        if area is not None and math.isfinite(area):
            areas[index] = area
    return areas


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_area(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_number(value: Any) -> bool:
    """JSON may hold whole numbers that no float can."""
    if isinstance(value, float):
        return True
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST

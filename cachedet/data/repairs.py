"""What is mended in an annotation file, what is only noticed, and how either is said.

Mended, counted and named: boxes drawn from right to left or from bottom to top (negative width or
height) are turned round, and ids that are text of a whole number ("7") are read as it. Refused:
boxes in fractions of the image's sides, and those that plainly are corners. Only noticed: a few
that seem to be corners, and boxes that reach beyond their image. For scoring boxes stay as they
stand, as the official tools take them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.errors import DatasetError
from cachedet.progress import count_of

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]

_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,18}")
_IDS = (
    ("images", "id"), ("categories", "id"), ("annotations", "id"), ("annotations", "image_id"),
    ("annotations", "category_id"),
)  # fmt: skip
_NAMED = 5  # ids in one note
PLACE = "cachedet place"
"""Key of an annotation that is no COCO's: its file and line."""
_TOLERANCE = 1.0  # pixels beyond the image that are rounding
_MANY = 0.2  # of the boxes reach beyond their images where corners stand for sides
_PLAIN = 10  # boxes that do so are no chance


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What reading an annotation file came to."""

    counts: dict[str, int]  # read, mended and dropped, by name
    notes: tuple[str, ...]  # what a person should look at, with the first ids


def number_ids(content: dict[str, Any]) -> list[str]:
    """Make numbers of ids that are text or floats of whole numbers; what is to be said of it."""
    mended: list[str] = []
    for section, key in _IDS:
        entries = content[section]
        for entry, number in zip(entries, numbered(entries, key), strict=True):
            if type(entry.get(key)) is not type(number):
                mended.append(f"{key} {entry[key]!r} in {section}")
                entry[key] = number
    return note_numbered(mended)


def numbered(entries: Sequence[dict[str, Any]], key: str) -> list[Any]:
    """The ids, those that are text or floats of whole numbers as numbers."""
    ids = (entry.get(key) for entry in entries)
    return [
        value if type(value) is int or (number := whole_number(value)) is None else number
        for value in ids
    ]


def note_numbered(mended: Sequence[str]) -> list[str]:
    """What is to be said of ids that were no numbers."""
    if not mended:
        return []
    return [f"{count_of(len(mended), 'id')} read as whole numbers, the first is {mended[0]}"]


def whole_number(value: Any) -> int | None:
    """The number that a text or float spells in one way only; None where there is none."""
    if type(value) is float and value.is_integer():
        return int(value)
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value)
    return None


def turn_round(xywh: Floats) -> Flags:
    """Make negative sides positive, in place, without moving the box; which boxes had any."""
    flipped = xywh[:, 2:] < 0
    xywh[:, :2] = np.where(flipped, xywh[:, :2] + xywh[:, 2:], xywh[:, :2])
    xywh[:, 2:] = np.abs(xywh[:, 2:])
    return np.asarray(flipped.any(axis=1))


def require_pixels(xywh: Floats, where: Path) -> None:
    """Raises DatasetError where the boxes seem to be fractions of the image."""
    if are_fractions(xywh):
        raise DatasetError(
            f"{where}: {describe_fractions(len(xywh))}; multiply x and width by the image's width, "
            "y and height by its height"
        )


def are_fractions(xywh: Floats) -> bool:
    """Whether all boxes lie within 0..1, and not at whole pixels."""
    known = xywh[np.isfinite(xywh).all(axis=1)]
    return bool(
        len(known) and known.min() >= 0 and known.max() <= 1 + 1e-6 and (known % 1 != 0).any()
    )


def describe_fractions(boxes: int) -> str:
    """For a message."""
    return (
        f"all of {_boxes(boxes)} lie within 0..1: they seem to be fractions of the image, "
        "as YOLO writes them, where COCO has [x, y, width, height] in pixels"
    )


def notice_corners(xywh: Floats, sizes_hw: NDArray[np.int64]) -> list[str]:
    """What is to be said where [x, y, width, height] seems to hold [x1, y1, x2, y2]."""
    beyond = count_corners(xywh, sizes_hw)
    return [f"{_describe_corners(beyond, xywh)}; is the file of another format?"] if beyond else []


def require_sides(xywh: Floats, sizes_hw: NDArray[np.int64], where: Path) -> None:
    """Raises DatasetError where [x, y, width, height] plainly holds [x1, y1, x2, y2]."""
    beyond = count_corners(xywh, sizes_hw)
    if beyond >= _PLAIN:
        raise DatasetError(
            f"{where}: {_describe_corners(beyond, xywh)}; write x2 - x1 and y2 - y1 as the third "
            "and fourth number of each"
        )


def _describe_corners(beyond: int, xywh: Floats) -> str:
    return (
        f"{beyond} of {_boxes(len(xywh))} reach beyond their image, and none would as corners "
        "[x1, y1, x2, y2]: COCO has [x, y, width, height]"
    )


def count_corners(xywh: Floats, sizes_hw: NDArray[np.int64]) -> int:
    """How many boxes leave their images where all are well as corners; else 0."""
    beyond = int(reach_beyond(xywh, sizes_hw).sum())
    x, y, right, bottom = xywh.T
    fits = (right > x) & (bottom > y)
    fits &= (right <= sizes_hw[:, 1] + _TOLERANCE) & (bottom <= sizes_hw[:, 0] + _TOLERANCE)
    return beyond if beyond >= _MANY * len(xywh) and fits.all() else 0


def reach_beyond(xywh: Floats, sizes_hw: NDArray[np.int64]) -> Flags:
    """Which boxes leave their images by more than rounding; sizes of 0 are not known."""
    x, y, width, height = xywh.T
    heights, widths = sizes_hw.T
    beyond = (x < -_TOLERANCE) | (y < -_TOLERANCE)
    beyond |= (widths > 0) & (x + width > widths + _TOLERANCE)
    beyond |= (heights > 0) & (y + height > heights + _TOLERANCE)
    return np.asarray(beyond)


def note_boxes(which: Flags, entries: Sequence[dict[str, Any]], what: str) -> list[str]:
    """``["2 boxes <what> (annotation ids 7, 9)"]``; nothing where there are none."""
    numbers = np.flatnonzero(which).tolist()
    if not numbers:
        return []
    first = [entries[number] for number in numbers[:_NAMED]]
    if all(PLACE in entry for entry in first):
        word, names = "", [place_of(entry) for entry in first]
    else:
        word = "annotation id " if len(numbers) == 1 else "annotation ids "
        names = [str(entry["id"]) for entry in first]
    more = ", ..." if len(numbers) > _NAMED else ""
    return [f"{_boxes(len(numbers))} {what} ({word}{', '.join(names)}{more})"]


def place_of(entry: dict[str, Any]) -> str:
    """Where an annotation stands, for a message."""
    return str(entry.get(PLACE) or f"annotation id {entry['id']}")


def _boxes(number: int) -> str:
    return "1 box" if number == 1 else f"{number} boxes"

"""All boxes of an annotation file as columns, checked, and which of them are of use."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.data.repairs import (
    Findings,
    are_fractions,
    describe_fractions,
    note_boxes,
    notice_corners,
    reach_beyond,
    require_pixels,
    require_sides,
    turn_round,
)
from cachedet.errors import DatasetError
from cachedet.structures import CategoryMap

LARGEST = 2**63  # whole numbers go into int64, squares of it still into floats


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxFault:
    """Boxes that have one fault, and what becomes of them."""

    name: str
    which: NDArray[np.bool_]  # (M,) of the boxes
    what: str  # behind their number, in a note


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxColumns:
    """All annotations as columns, in the order of the file; numbers that are none are NaN."""

    entries: Sequence[dict[str, Any]]  # M of them, as the file has them
    rows: NDArray[np.int64]  # (M,) image
    labels: NDArray[np.int64]
    xywh: NDArray[np.float64]  # (M, 4)
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    flipped: NDArray[np.bool_]  # (M,) had a negative side

    @classmethod
    def read(
        cls,
        entries: Sequence[dict[str, Any]],
        image_ids: NDArray[np.int64],
        categories: CategoryMap,
        where: Path,
        *,
        as_they_stand: bool,  # negative sides too, as the official tools score them
    ) -> BoxColumns:
        """Raises DatasetError on the first annotation that is none."""
        row_of = {image_id: row for row, image_id in enumerate(image_ids.tolist())}
        bboxes = _column(entries, "bbox", _is_box, "`bbox` [x, y, width, height]", where)
        numbers = np.fromiter(chain.from_iterable(bboxes), dtype=np.float64, count=4 * len(bboxes))
        xywh = numbers.reshape(-1, 4)
        xywh[~(np.abs(xywh) < LARGEST)] = np.nan
        flipped = (xywh[:, 2:] < 0).any(axis=1) if as_they_stand else turn_round(xywh)
        crowd = _column(entries, "iscrowd", _is_flag, "0 or 1 as `iscrowd`", where)
        return cls(
            entries=entries,
            rows=_look_up(entries, "image_id", row_of, where),
            labels=_look_up(entries, "category_id", categories.label_of(), where),
            xywh=xywh,
            areas=_areas(entries, xywh, where, least=-math.inf if as_they_stand else 0.0),
            crowd=np.array([bool(flag) for flag in crowd], dtype=np.bool_),
            flipped=np.asarray(flipped),
        )

    @property
    def xyxy(self) -> NDArray[np.float64]:
        """(M, 4)"""
        return np.concatenate([self.xywh[:, :2], self.xywh[:, :2] + self.xywh[:, 2:]], axis=1)

    def finite(self, sizes_hw: NDArray[np.int64]) -> tuple[NDArray[np.bool_], Findings]:
        """Which boxes are numbers: what the official tools score."""
        finite = np.asarray(np.isfinite(self.xywh).all(axis=1))
        notes = [
            *note_boxes(~finite, self.entries, "of NaN or Inf left out"),
            *note_boxes(
                self.flipped, self.entries, "of negative width or height, which match nothing"
            ),
            *([describe_fractions(len(finite))] if are_fractions(self.xywh) else []),
            *notice_corners(self.xywh[finite], sizes_hw[self.rows[finite]]),
        ]
        counts = {"boxes of NaN or Inf dropped": int((~finite).sum())}
        return finite, Findings(counts=counts, notes=tuple(notes))

    def usable(
        self, sizes_hw: NDArray[np.int64], where: Path
    ) -> tuple[NDArray[np.bool_], Findings]:
        """Which boxes can teach, and what is to be said of the others.

        Raises DatasetError where they are fractions of the image, or plainly corners.
        """
        sizes = sizes_hw[self.rows]
        solid, inside = self._solid_and_inside(sizes)
        require_pixels(self.xywh, where)
        require_sides(self.xywh[solid], sizes[solid], where)
        x1, y1, x2, y2 = self.xyxy.T
        height, width = sizes.T
        kept = solid & inside
        partly = kept & ((x1 < 0) | (y1 < 0) | (x2 > width) | (y2 > height))
        counts = {
            "flipped boxes repaired": int(self.flipped.sum()),
            "degenerate boxes dropped": int((~solid).sum()),
            "boxes outside the image dropped": int((solid & ~inside).sum()),
            "boxes partly outside": int(partly.sum()),
        }
        notes = [
            note
            for fault in self.faults(sizes_hw)
            for note in note_boxes(fault.which, self.entries, fault.what)
        ]
        notes += notice_corners(self.xywh[solid], sizes[solid])
        return kept, Findings(counts=counts, notes=tuple(notes))

    def faults(self, sizes_hw: NDArray[np.int64]) -> list[BoxFault]:
        """What is repaired, dropped or cut in training, one kind after the other."""
        sizes = sizes_hw[self.rows]
        solid, inside = self._solid_and_inside(sizes)
        beyond = solid & inside & reach_beyond(self.xywh, sizes)
        kinds = (
            ("flipped", self.flipped, "of negative width or height turned round"),
            ("degenerate", ~solid, "without area, or of NaN or Inf, dropped"),
            ("outside", solid & ~inside, "outside the image dropped"),
            ("partly outside", beyond, "partly outside the image, cut at its border in training"),
        )
        return [BoxFault(name=name, which=which, what=what) for name, which, what in kinds]

    def _solid_and_inside(
        self, sizes: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which boxes have an area (NaN has none), and which reach into their images (M, 2)."""
        x1, y1, x2, y2 = self.xyxy.T
        height, width = sizes.T
        solid = np.asarray((x2 > x1) & (y2 > y1))
        return solid, np.asarray((x2 > 0) & (y2 > 0) & (x1 < width) & (y1 < height))


def _look_up(
    entries: Sequence[dict[str, Any]], key: str, index_of: dict[Any, int], where: Path
) -> NDArray[np.int64]:
    values = [entry.get(key) for entry in entries]
    indices = np.array(
        [index_of.get(value, -1) if type(value) is int else -1 for value in values], dtype=np.int64
    )
    unknown = np.flatnonzero(indices < 0)
    if len(unknown):
        first = int(unknown[0])
        raise DatasetError(
            f"{where}: annotation id {entries[first]['id']} has {key} "
            f"{reprlib.repr(values[first])}, which is not in the file; {len(unknown)} annotations "
            f"are like this{_kind_of_id(values[first])}"
        )
    return indices


def _kind_of_id(value: Any) -> str:
    if type(value) is int:
        return ""
    return f"; ids are whole numbers, this is a {type(value).__name__}"


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
    entries: Sequence[dict[str, Any]],
    xywh: NDArray[np.float64],
    where: Path,
    *,
    least: float,
) -> NDArray[np.float64]:
    """The file's; the box's where it has none (or NaN, as table libraries write it)."""
    areas = xywh[:, 2] * xywh[:, 3]
    given = _column(entries, "area", _is_area, "a number as `area`", where)
    for index, area in enumerate(given):
        if area is not None and math.isfinite(area) and area >= least:
            areas[index] = area
    return areas


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_area(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_flag(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and value in (0, 1))


def _is_number(value: Any) -> bool:
    """JSON may hold whole numbers that no float can."""
    if isinstance(value, float):
        return True
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST

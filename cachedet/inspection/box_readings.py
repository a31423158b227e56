"""Boxes whose four numbers seem to mean something else than [x, y, width, height] in pixels.

x and y swapped, centres in the place of corners, percents. Corners for sides, and fractions of the
image, are refused where the file is read (data/repairs.py). Letters: M boxes of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cachedet.data.box_columns import BoxColumns
from cachedet.data.repairs import reach_beyond
from cachedet.inspection.annotated_set import AnnotatedSet
from cachedet.inspection.finding import Finding

_LEAST = 4  # boxes beyond their images, where they are a tenth or more
_PLAIN = 10  # where they are 2 in 100 or more: no chance
_CLEARED = 20  # of so many beyond their images at most one may stay there when read otherwise
_DEEP = 0.1  # of a side is beyond, in half of them: sloppy boxes end nearer to the border
_PERCENT = 101.0  # the largest edge, with rounding
_FILLED = 80.0  # percents come near to 100 somewhere
_LARGE = 200  # pixels of the shorter sides of images, of which 100 are a corner

Boxes = NDArray[np.float64]  # (M, 4)
Flags = NDArray[np.bool_]
SizesHW = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What four numbers may be, and the xywh that they then are."""

    kind: str
    order: str
    meaning: str
    advice: str
    to_xywh: Callable[[Boxes], Boxes]


_ORDERS = (
    _Order(
        kind="x and y swapped",
        order="[y, x, height, width]",
        meaning="x and y, and width and height, are swapped",
        advice="Exchange the first two and the last two numbers of each box.",
        to_xywh=lambda given: given[:, [1, 0, 3, 2]],
    ),
    _Order(
        kind="x and y swapped",
        order="[y, x, width, height]",
        meaning="x and y are swapped",
        advice="Exchange the first two numbers of each box.",
        to_xywh=lambda given: given[:, [1, 0, 2, 3]],
    ),
    _Order(
        kind="centres",
        order="[centre x, centre y, width, height]",
        meaning="x and y are those of the centre",
        advice="Subtract half of the width from x and half of the height from y: COCO's x and y "
        "are those of the upper left corner.",
        to_xywh=lambda given: np.hstack([given[:, :2] - given[:, 2:] / 2, given[:, 2:]]),
    ),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What the boxes of a file most likely are, and what speaks for it."""

    kind: str
    text: str
    advice: str
    which: Flags  # (M,) boxes that make no sense as they stand
    is_plain: bool  # so many that it can be no chance


def reading_findings(annotated: AnnotatedSet) -> Iterator[Finding]:
    """At most one."""
    columns = annotated.columns
    if columns is None or annotated.dataset is None or annotated.refusals:
        return
    found = find_reading(columns, annotated.sizes_hw[columns.rows])
    if found is not None:
        yield Finding(
            rank="stops" if found.is_plain else "look at",
            kind=found.kind,
            text=f"{annotated.name}: {found.text}",
            advice=found.advice,
            count=int(found.which.sum()),
            places=annotated.places_of_boxes(found.which),
        )


def find_reading(columns: BoxColumns, sizes_hw: SizesHW) -> Reading | None:
    """Of boxes in images of these sizes (M, 2); None where they are best taken as they stand."""
    usable = np.isfinite(columns.xywh).all(axis=1) & (columns.xywh[:, 2:] > 0).all(axis=1)
    usable &= ~columns.flipped & (sizes_hw > 0).all(axis=1)
    given, sizes = columns.xywh[usable], sizes_hw[usable]
    if _are_percents(given, sizes):
        return _percents(given, sizes, usable)
    beyond = reach_beyond(given, sizes)
    if not _are_far_beyond(given, sizes, beyond):
        return None
    left = [int(reach_beyond(each.to_xywh(given), sizes).sum()) for each in _ORDERS]
    best, count = int(np.argmin(left)), int(beyond.sum())
    if left[best] * _CLEARED > count:
        return None
    which = np.zeros(len(usable), dtype=np.bool_)
    which[usable] = beyond
    return Reading(
        kind=_ORDERS[best].kind,
        text=f"{count:,} of {len(given):,} boxes ({count / len(given):.0%}) leave their images as "
        f"[x, y, width, height], and {left[best]:,} as {_ORDERS[best].order}: most likely "
        f"{_ORDERS[best].meaning}",
        advice=_ORDERS[best].advice,
        which=which,
        is_plain=count >= _PLAIN,
    )


def _are_far_beyond(given: Boxes, sizes: SizesHW, beyond: Flags) -> bool:
    """Whether so many boxes leave their images, and so far, that it is no sloppiness."""
    count, total = int(beyond.sum()), len(given)
    is_many = count >= _PLAIN and 50 * count >= total
    if not is_many and (count < _LEAST or 10 * count < total):
        return False
    over = (_far_edges(given) - sizes[:, ::-1]) / given[:, 2:]
    return bool(np.median(over[beyond].max(axis=1)) >= _DEEP)


def _are_percents(given: Boxes, sizes: SizesHW) -> bool:
    if len(given) < _PLAIN or given.min() < 0 or sizes.min() < _LARGE:
        return False
    reach = _far_edges(given).max(axis=0)
    return bool(reach.max() <= _PERCENT and reach.min() >= _FILLED)


def _percents(given: Boxes, sizes: SizesHW, usable: Flags) -> Reading:
    width, height = np.median(sizes[:, 1]), np.median(sizes[:, 0])
    right, bottom = _far_edges(given).max(axis=0)
    return Reading(
        kind="percents",
        text=f"all of {len(given):,} boxes lie within 0..100, in one corner of images of "
        f"{width:.0f}x{height:.0f} pixels, up to {right:.3g} and {bottom:.3g}: most likely "
        "percents, as Label Studio writes them",
        advice="Multiply x and width by a hundredth of the image's width, y and height by one of "
        "its height.",
        which=usable,
        is_plain=len(given) >= 2 * _PLAIN,
    )


def _far_edges(given: Boxes) -> Boxes:
    """(M, 2) right and bottom."""
    return given[:, :2] + given[:, 2:]

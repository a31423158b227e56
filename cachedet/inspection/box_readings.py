"""Boxes whose four numbers seem to mean something else than [x, y, width, height] in pixels.

x and y swapped, centres in the place of corners, percents. Corners for sides, and fractions of the
image, are refused where the file is read (data/repairs.py). Objects may be drawn beyond the border
on purpose, or all lie in a corner: what could be that is to be looked at, and stops nobody.
Letters: M boxes of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
_SPREAD = 50.0  # of percents some box begins behind the middle; a logo in a corner does not
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

    def misfits(self, given: Boxes, sizes: SizesHW) -> int:
        """How many boxes make no sense when they are read so."""
        boxes = self.to_xywh(given)
        return int((reach_beyond(boxes, sizes) | (boxes[:, 2:] <= 0).any(axis=1)).sum())


def _from_corners(given: Boxes) -> Boxes:
    return np.hstack([given[:, :2], given[:, 2:] - given[:, :2]])


def _from_centres(given: Boxes) -> Boxes:
    return np.hstack([given[:, :2] - given[:, 2:] / 2, given[:, 2:]])


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
        kind="x and y swapped",
        order="[y1, x1, y2, x2]",
        meaning="they are corners, y first, as TensorFlow has them",
        advice="Write [x1, y1, x2 - x1, y2 - y1].",
        to_xywh=lambda given: _from_corners(given[:, [1, 0, 3, 2]]),
    ),
    _Order(
        kind="centres",
        order="[centre x, centre y, width, height]",
        meaning="x and y are those of the centre",
        advice="Subtract half of the width from x and half of the height from y: COCO's x and y "
        "are those of the upper left corner.",
        to_xywh=_from_centres,
    ),
)
_PERCENTS: dict[str, Callable[[Boxes], Boxes]] = {
    "": lambda given: given,
    " as [centre x, centre y, width, height]": _from_centres,
    " as [x1, y1, x2, y2]": _from_corners,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What the boxes of a file most likely are, and what speaks for it."""

    kind: str
    text: str
    advice: str
    which: Flags  # (M,) boxes that make no sense as they stand
    is_plain: bool  # so many that it can be no chance


def reading_findings(annotated: AnnotatedSet, *, without: Sequence[int] = ()) -> Iterator[Finding]:
    """At most one; `without` are images whose annotated size is wrong."""
    columns = annotated.columns
    if columns is None or annotated.dataset is None or annotated.refusals:
        return
    sizes_hw = annotated.sizes_hw.copy()
    sizes_hw[list(without)] = 0
    found = find_reading(columns, sizes_hw[columns.rows])
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
    """Of boxes in images of these sizes (M, 2), 0 where it is not known.

    None where they are best taken as they stand.
    """
    usable = np.isfinite(columns.xywh).all(axis=1) & (columns.xywh[:, 2:] > 0).all(axis=1)
    usable &= ~columns.flipped & (sizes_hw > 0).all(axis=1)
    given, sizes = columns.xywh[usable], sizes_hw[usable]
    order = _order_of_percents(given, sizes)
    if order is not None:
        return _percents(given, sizes, usable, order)
    beyond = reach_beyond(given, sizes)
    if not _are_far_beyond(given, sizes, beyond):
        return None
    left = [each.misfits(given, sizes) for each in _ORDERS]
    best, count = int(np.argmin(left)), int(beyond.sum())
    if left[best] * _CLEARED > count:
        return None
    which = np.zeros(len(usable), dtype=np.bool_)
    which[usable] = beyond
    is_plain = count >= _PLAIN and _is_no_overhang(given, sizes, _ORDERS[best])
    likely = "most likely" if is_plain else "perhaps objects are drawn beyond the border, perhaps"
    return Reading(
        kind=_ORDERS[best].kind,
        text=f"{count:,} of {len(given):,} boxes ({count / len(given):.0%}) leave their images as "
        f"[x, y, width, height], and {left[best]:,} as {_ORDERS[best].order}: {likely} "
        f"{_ORDERS[best].meaning}",
        advice=_ORDERS[best].advice,
        which=which,
        is_plain=is_plain,
    )


def _is_no_overhang(given: Boxes, sizes: SizesHW, order: _Order) -> bool:
    """Whether it cannot be that objects at one border are drawn as they go on behind it."""
    if order.kind == "centres":  # at two borders, and at none of the others
        return bool((_far_edges(given) > sizes[:, ::-1] + 1).any(axis=0).all())
    return bool((given[:, :2] >= sizes[:, ::-1]).any())  # wholly outside


def _are_far_beyond(given: Boxes, sizes: SizesHW, beyond: Flags) -> bool:
    """Whether so many boxes leave their images, and so far, that it is no sloppiness."""
    count, total = int(beyond.sum()), len(given)
    is_many = count >= _PLAIN and 50 * count >= total
    if not is_many and (count < _LEAST or 10 * count < total):
        return False
    over = (_far_edges(given) - sizes[:, ::-1]) / given[:, 2:]
    return bool(np.median(over[beyond].max(axis=1)) >= _DEEP)


def _order_of_percents(given: Boxes, sizes: SizesHW) -> str | None:
    """None where they are none."""
    if len(given) < _PLAIN or given.min() < 0 or sizes.min() < _LARGE:
        return None
    for order, to_xywh in _PERCENTS.items():
        boxes = to_xywh(given)
        reach = _far_edges(boxes).max(axis=0)
        is_filled = reach.max() <= _PERCENT and reach.min() >= _FILLED
        is_box = boxes[:, :2].min() >= 100 - _PERCENT and boxes[:, 2:].min() > 0
        if is_filled and is_box and (not order or _are_spread(boxes)):
            return order
    return None


def _are_spread(boxes: Boxes) -> bool:
    return bool(boxes[:, :2].max(axis=0).min() >= _SPREAD)


def _percents(given: Boxes, sizes: SizesHW, usable: Flags, order: str) -> Reading:
    boxes = _PERCENTS[order](given)
    width, height = np.median(sizes[:, 1]), np.median(sizes[:, 0])
    is_spread = _are_spread(boxes)
    likely = "most likely" if is_spread else "perhaps all objects are there, perhaps they are"
    right, bottom = _far_edges(boxes).max(axis=0)
    return Reading(
        kind="percents",
        text=f"all of {len(given):,} boxes lie within 0..100, in one corner of images of "
        f"{width:.0f}x{height:.0f} pixels, up to {right:.3g} and {bottom:.3g}: {likely} "
        f"percents{order or ', as Label Studio writes them'}",
        advice="Multiply x and width by a hundredth of the image's width, y and height by one of "
        "its height" + (", and make [x, y, width, height] of them." if order else "."),
        which=usable,
        is_plain=len(given) >= 2 * _PLAIN and is_spread,
    )


def _far_edges(given: Boxes) -> Boxes:
    """(M, 2) right and bottom."""
    return given[:, :2] + given[:, 2:]

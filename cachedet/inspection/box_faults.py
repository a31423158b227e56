"""Boxes that teach something wrong: outside, without area, twice, all of an image.

Letters: M boxes of a file.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cachedet.data.box_columns import BoxColumns
from cachedet.inspection.annotated_set import AnnotatedSet
from cachedet.inspection.finding import Finding, Rank, count_words

_DOUBLED = 0.95  # IoU of two boxes of one class
_WHOLE = 0.99  # of each side of the image
_TOO_MANY = 0.2  # of the boxes dropped: the annotations are not of these images

Flags = NDArray[np.bool_]

_ADVICE = {
    "flipped": "",
    "degenerate": "Draw them again, or delete them.",
    "outside": "The image may have been resized, cropped or turned after it was annotated.",
    "partly outside": "",
    "under 1 px": "Nothing can be learned of them: draw them again, or delete them.",
    "in fractions": "Multiply them by the sides of their images: others are in pixels.",
    "doubled": "Keep one of each: the same object is counted twice in training and in scores.",
    "whole image": "Fine where one object fills its image; else these are labels without a place.",
}


def box_findings(annotated: AnnotatedSet) -> Iterator[Finding]:
    """The faults of the boxes of one set; what extract repairs, drops or cuts among them."""
    columns = annotated.columns
    if columns is None or annotated.dataset is None or annotated.refusals or not len(columns.rows):
        return
    total, is_any = len(columns.rows), False
    for kind, which, what in _faults(columns, annotated.sizes_hw):
        count = int(which.sum())
        if not count:
            continue
        is_any = True
        is_dropped = kind in ("degenerate", "outside")
        rank: Rank = "stops" if is_dropped and count >= _TOO_MANY * total else "look at"
        yield Finding(
            rank=rank,
            kind=kind,
            text=f"{annotated.name}: {count_words(count, total, 'boxes', what)}",
            advice=_ADVICE[kind],
            count=count,
            places=annotated.places_of_boxes(which),
        )
    if empty := annotated.dataset.counts["images without boxes"]:
        words = count_words(empty, len(annotated.sizes_hw), "images", "are without boxes")
        yield Finding(rank="fine", kind="background", text=f"{annotated.name}: {words}")
    if not is_any:
        text = f"{annotated.name}: no box is outside, without area, drawn twice or a whole image"
        yield Finding(rank="fine", kind="boxes", text=text)


def _faults(columns: BoxColumns, sizes_hw: NDArray[np.int64]) -> Iterator[tuple[str, Flags, str]]:
    """Kind, which boxes, and what is said behind their number."""
    for fault in columns.faults(sizes_hw):
        yield fault.name, fault.which, fault.what
    width, height = columns.xywh[:, 2:].T
    sizes = sizes_hw[columns.rows]
    with np.errstate(invalid="ignore"):  # NaN
        is_solid = (width > 0) & (height > 0)
        is_fraction = is_solid & (columns.xyxy.max(axis=1) <= 1) & (sizes.min(axis=1) > 1)
        is_fraction &= (columns.xywh >= 0).all(axis=1) & (columns.xywh % 1 != 0).any(axis=1)
        is_tiny = is_solid & ~is_fraction & ((width < 1) | (height < 1))
        fills = (width >= _WHOLE * sizes[:, 1]) & (height >= _WHOLE * sizes[:, 0])
    yield "in fractions", is_fraction, "lie within 0..1, as fractions of their images do"
    yield "under 1 px", is_tiny, "are under 1 pixel wide or high"
    yield "doubled", find_doubled(columns), "cover another one of their class (IoU above 0.95)"
    yield "whole image", fills & ~columns.crowd, "are as large as their images"


def find_doubled(columns: BoxColumns) -> Flags:
    """(M,) boxes that lie on an earlier one of their class and image.

    An IoU above t needs left sides nearer than (1 - t) of the width. So boxes are sorted by them,
    and each is held against the next one, the one after that, ... as long as those are near.
    """
    boxes, doubled = columns.xyxy, np.zeros(len(columns.rows), dtype=np.bool_)
    usable = np.isfinite(boxes).all(axis=1) & (columns.xywh[:, 2:] > 0).all(axis=1)
    usable &= ~columns.crowd
    numbers = np.flatnonzero(usable)
    order = numbers[np.lexsort((boxes[numbers, 0], columns.labels[numbers], columns.rows[numbers]))]
    first, step = np.arange(len(order)), 0
    while len(first):
        step += 1
        first = first[first + step < len(order)]
        one, other = order[first], order[first + step]
        near = (columns.rows[one] == columns.rows[other]) & (
            columns.labels[one] == columns.labels[other]
        )
        near &= boxes[other, 0] - boxes[one, 0] <= (1 - _DOUBLED) * columns.xywh[one, 2]
        first, one, other = first[near], one[near], other[near]
        are_same = _ious(boxes[one], boxes[other]) > _DOUBLED
        doubled[np.maximum(one, other)[are_same]] = True
    return doubled


def _ious(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P, 4) and (P, 4) -> (P,)"""
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    inner = sides.clip(0).prod(axis=1)
    areas = (one[:, 2:] - one[:, :2]).prod(axis=1) + (other[:, 2:] - other[:, :2]).prod(axis=1)
    ious: NDArray[np.float64] = inner / (areas - inner)
    return ious

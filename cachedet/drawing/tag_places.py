"""Where captions go, so that none hides another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_REACH = 5  # heights of a tag: how far from its box it may be
Corners = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A tag's rectangle, and the line to its box where they do not touch."""

    rectangle: Corners
    line: Corners | None = None


def place_tags(
    boxes: Sequence[NDArray[np.float64]],
    sizes: Sequence[tuple[float, float]],
    *,
    size: tuple[int, int],
) -> list[Place | None]:
    """A place for the tag (width, height) of each box (4,), the first ones choosing first.

    At the box where that is free, else at the nearest free place, with a line to the box; None
    where there is none within reach. Tags of no more than the image's `size` (width, height) stay
    inside of it.
    """
    taken = np.zeros((0, 4))
    places: list[Place | None] = []
    for box, tag in zip(boxes, sizes, strict=True):
        found = None
        for corners in _candidates(box, tag, size):
            free = corners[~_overlap_any(corners, tag, taken)]
            if len(free):
                found = _place(free[0], tag, box)
                taken = np.concatenate([taken, [found.rectangle]])
                break
        places.append(found)
    return places


def _candidates(
    box: NDArray[np.float64], tag: tuple[float, float], size: tuple[int, int]
) -> Iterator[NDArray[np.float64]]:
    """Upper left corners (n, 2) inside the image, the best first: at the box, then elsewhere."""
    (x1, y1, x2, y2), (width, height) = box.tolist(), tag
    most = np.floor(np.maximum(np.array(size) - tag, 0))
    outside = [(x1, y1 - height), (x2 - width, y1 - height), (x1, y2), (x2 - width, y2)]
    beside = [(x2, y1), (x1 - width, y1), (x2, y2 - height), (x1 - width, y2 - height)]
    inside = [(x1, y1), (x2 - width, y1), (x1, y2 - height), (x2 - width, y2 - height)]
    if y1 < height:  # no room above: first inside, as where the image ends there
        outside = [inside[0], *outside]
    yield np.floor(np.clip(np.array([*outside, *inside, *beside]), 0, most))
    reach_x, reach_y = width + _REACH * height, (1 + _REACH) * height
    xs = np.arange(x1 - reach_x, x2 + _REACH * height, height / 2).clip(0, most[0])
    ys = np.arange(y1 - reach_y, y2 + _REACH * height, height / 4).clip(0, most[1])
    columns, rows = np.unique(np.floor(xs)), np.unique(np.floor(ys))
    grid = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    gaps = np.maximum(0, np.maximum([x1, y1] - grid - tag, grid - [x2, y2]))
    yield grid[np.hypot(*gaps.T).argsort(kind="stable")]


def _overlap_any(
    corners: NDArray[np.float64], tag: tuple[float, float], taken: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """(n,) whether a tag at each corner would meet one of the rectangles (m, 4)."""
    starts, ends = corners[:, None], corners[:, None] + tag
    meets = (starts < taken[None, :, 2:]) & (ends > taken[None, :, :2])
    found: NDArray[np.bool_] = np.any(np.all(meets, axis=2), axis=1)
    return found


def _place(
    corner: NDArray[np.float64], tag: tuple[float, float], box: NDArray[np.float64]
) -> Place:
    x, y = corner.tolist()
    width, height = tag
    centre_x, centre_y = x + width / 2, y + height / 2
    x1, y1, x2, y2 = box.tolist()
    at_x, at_y = min(max(centre_x, x1), x2), min(max(centre_y, y1), y2)  # of the box, the nearest
    touches = x - 1 <= at_x <= x + width + 1 and y - 1 <= at_y <= y + height + 1
    return Place(
        rectangle=(x, y, x + width, y + height),
        line=None if touches else (centre_x, centre_y, at_x, at_y),
    )

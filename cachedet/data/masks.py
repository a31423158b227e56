"""Masks of objects: in stores as codes of a few hundred bytes each, from heads as probabilities.

A code is the `counts` of COCO's compressed run lengths (pycocotools), for a bitmap of a known
size; the empty code stands for an annotation without a mask. Polygons become the very pixels that
pycocotools draws: what lies outside the image is cut off, edges keep their direction. The limits
below hold before pycocotools sees anything: it writes beyond its memory where they do not.
"""

from __future__ import annotations

import math
import reprlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from cachedet.errors import StoreError
from cachedet.structures import Detections, SizeHW

NO_MASK = b""
MOST_PIXELS = 1 << 28  # of a bitmap; images have at most 170 million
MOST_RUNS = 1 << 22  # of a mask: as many are written for four million separate columns
MOST_BOUNDARY = 4_000_000  # pixels around the polygons of one mask; 80 bytes of memory for each
FARTHEST = 1e9  # pixels from the image's corner to a point of a polygon
_THRESHOLD = 0.5  # probability from which a pixel belongs to the object


def encode_segmentation(segmentation: Any, size_hw: SizeHW) -> bytes:
    """A COCO `segmentation` as one code; parts outside the image are cut off.

    It may be None, an RLE, or polygons [[x, y, ...], ...] in pixels, of which those of fewer than
    3 points are left out: COCO itself holds some. Raises ValueError on anything else, where no
    polygon is left, on an RLE of another size, and beyond the limits of this module.
    """
    if segmentation is None or segmentation == []:
        return NO_MASK
    _require_drawable(size_hw)
    if isinstance(segmentation, dict):
        return _encode_rle(segmentation, size_hw)
    if not isinstance(segmentation, list):
        raise ValueError(f"expected polygons or an RLE, got {type(segmentation).__name__}")
    return _encode_polygons(segmentation, size_hw)


def encode_bitmap(bitmap: NDArray[np.bool_]) -> bytes:
    """(H, W) -> code."""
    return bytes(coco_mask.encode(np.asfortranarray(bitmap, dtype=np.uint8))["counts"])


def decode_mask(code: bytes, size_hw: SizeHW) -> NDArray[np.uint8]:
    """Code -> (H, W) of 0 and 1; the empty code gives zeros. Raises StoreError on another size."""
    height, width = size_hw
    if code == NO_MASK:
        return np.zeros(size_hw, dtype=np.uint8)
    runs = require_covers(code, size_hw)
    values = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.repeat(values, runs).reshape(width, height).T  # column by column


def require_covers(code: bytes, size_hw: SizeHW) -> list[int]:
    """The code's run lengths. Raises StoreError where they are not those of such a bitmap.

    pycocotools writes beyond its memory on such codes: those of a store are checked before it.
    """
    runs = _covering_runs(code, size_hw)
    if runs is None:
        raise StoreError(
            f"a mask of {len(code)} bytes does not cover its image of {size_hw[0]} x "
            f"{size_hw[1]} pixels; cachedet did not write the masks of this store"
        )
    return runs


def empty_code(size_hw: SizeHW) -> bytes:
    """The code of a bitmap without a pixel of the object."""
    height, width = size_hw
    runs = {"size": [height, width], "counts": [height * width]}
    return bytes(coco_mask.frPyObjects(runs, height, width)["counts"])


def is_blank(code: bytes) -> bool:
    """Whether a code says nothing of an object: none, or one run of background."""
    return all(character - 48 & 32 for character in code[:-1])


def rle_of(code: bytes, size_hw: SizeHW) -> dict[str, Any]:
    """The code as COCO's JSON writes it."""
    return {"size": list(size_hw), "counts": code.decode("ascii")}


def paste_masks(detections: Detections, size_hw: SizeHW) -> list[bytes]:
    """One code for each detection, whose boxes are in pixels of the image; none without masks."""
    if detections.masks is None:
        return []
    return [
        encode_bitmap(paste_mask(cells, box, size_hw))
        for cells, box in zip(detections.masks.cpu(), detections.boxes.cpu(), strict=True)
    ]


def paste_mask(cells: Tensor, box: Tensor, size_hw: SizeHW) -> NDArray[np.bool_]:
    """Probabilities (S, S) over a box (4,) -> bitmap (H, W): where they reach a half.

    Each pixel's centre is looked up among the centres of the cells, bilinearly; beyond the outer
    centres they fade to zero, as in Mask R-CNN's own code.
    """
    height, width = size_hw
    x1, y1, x2, y2 = box.tolist()
    left, right = max(math.floor(x1), 0), min(math.ceil(x2), width)
    top, bottom = max(math.floor(y1), 0), min(math.ceil(y2), height)
    bitmap = np.zeros(size_hw, dtype=np.bool_)
    if right <= left or bottom <= top or x2 <= x1 or y2 <= y1:
        return bitmap
    grid_x = (torch.arange(left, right) + 0.5 - x1) / (x2 - x1) * 2 - 1
    grid_y = (torch.arange(top, bottom) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack(torch.meshgrid(grid_x, grid_y, indexing="xy"), dim=-1)
    values = F.grid_sample(
        cells[None, None].float(), grid[None].float(), align_corners=False, padding_mode="zeros"
    )
    bitmap[top:bottom, left:right] = (values[0, 0] >= _THRESHOLD).numpy()
    return bitmap


def _require_drawable(size_hw: SizeHW) -> None:
    height, width = size_hw
    if height < 1 or width < 1:
        raise ValueError("the image's `height` and `width` are not given")
    if height * width > MOST_PIXELS:
        raise ValueError(
            f"its image of {height} x {width} pixels is larger than masks may be, "
            f"{MOST_PIXELS:,} pixels"
        )


def _encode_polygons(polygons: list[Any], size_hw: SizeHW) -> bytes:
    height, width = size_hw
    if set(map(type, polygons)) <= {int, float}:
        raise ValueError("expected a list of polygons, got one alone; put it into a list")
    drawn = [points for points in map(_points_of, polygons) if len(points) >= 3]
    if not drawn:
        raise ValueError("expected a polygon of at least 3 points [x, y, x, y, x, y, ...]")
    reaches = [np.abs(points).max() for points in drawn]
    if max(reaches) > FARTHEST:
        raise ValueError(f"a point is farther than {FARTHEST:,.0f} pixels from the image")
    most = sum(len(points) * (2 * reach + 1) for points, reach in zip(drawn, reaches, strict=True))
    # pycocotools walks along all of it
    if most > MOST_BOUNDARY and sum(map(_boundary_of, drawn)) > MOST_BOUNDARY:
        drawn = [_cut(points, size_hw) for points in drawn]
        boundary = sum(map(_boundary_of, drawn))
        if boundary > MOST_BOUNDARY:
            raise ValueError(
                f"the polygons are {boundary:,.0f} pixels long, expected at most {MOST_BOUNDARY:,}"
            )
    drawn = [points for points in drawn if len(points) >= 3]
    if not drawn:
        return empty_code(size_hw)
    runs = coco_mask.frPyObjects([points.ravel().tolist() for points in drawn], height, width)
    return bytes(coco_mask.merge(runs)["counts"])


def _points_of(polygon: Any) -> NDArray[np.float64]:
    """(P, 2). Raises ValueError where it is no polygon."""
    if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
        raise ValueError(
            f"expected polygons as lists of numbers [x, y, ...], got {reprlib.repr(polygon)}"
        )
    if len(polygon) % 2:
        raise ValueError(f"expected an x and a y for each point, got {len(polygon)} numbers")
    try:
        points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    except OverflowError as error:
        raise ValueError("a point of a polygon is no finite number") from error
    if not np.isfinite(points).all():
        raise ValueError("a point of a polygon is no finite number")
    return points


def _boundary_of(points: NDArray[np.float64]) -> float:
    """Pixels that pycocotools steps through from point to point, around to the first."""
    steps = np.abs(np.roll(points, -1, axis=0) - points).max(axis=1, initial=0)
    return float(steps.sum()) + len(points) / 5  # it takes five steps a pixel, and one a point


def _cut(points: NDArray[np.float64], size_hw: SizeHW) -> NDArray[np.float64]:
    """What is left of a polygon just around the image; edges keep their direction."""
    margin = 8.0
    for axis, side in ((0, size_hw[1]), (1, size_hw[0])):
        for sign, limit in ((1.0, side + margin), (-1.0, margin)):
            ahead = np.roll(points, -1, axis=0)
            inside = sign * points[:, axis] <= limit
            crosses = inside != np.roll(inside, -1)
            run = np.where(crosses, ahead[:, axis] - points[:, axis], 1.0)
            share = (sign * limit - points[:, axis]) / run
            crossing = points + share[:, None] * (ahead - points)
            crossing[:, axis] = sign * limit
            both = np.stack([points, crossing], axis=1)
            points = both[np.stack([inside, crosses], axis=1)]
    return points


def _encode_rle(segmentation: dict[str, Any], size_hw: SizeHW) -> bytes:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    height, width = size_hw
    if size != [height, width]:
        swapped = "; they stand as [width, height]" if size == [width, height] else ""
        raise ValueError(
            f"expected an RLE of size {list(size_hw)}, [height, width] of the image, got "
            f"{reprlib.repr(size)}{swapped}"
        )
    if isinstance(counts, list):
        if len(counts) > MOST_RUNS:
            raise ValueError(f"expected at most {MOST_RUNS:,} run lengths, got {len(counts):,}")
        if not all(type(run) is int and run >= 0 for run in counts):
            raise ValueError("expected run lengths that are whole numbers from 0")
        total, expected = sum(counts), height * width
        if total != expected:
            raise ValueError(
                f"expected run lengths that sum to {expected}, got {reprlib.repr(total)}"
            )
        runs = {"size": [height, width], "counts": counts}
        return bytes(coco_mask.frPyObjects(runs, height, width)["counts"])
    if not isinstance(counts, str) or not counts.isascii():
        raise ValueError(f"expected `counts` as a list or a string, got {type(counts).__name__}")
    if _covering_runs(counts.encode(), size_hw) is None:
        raise ValueError(f"the compressed RLE does not cover {height} x {width} pixels")
    return counts.encode()


def _covering_runs(code: bytes, size_hw: SizeHW) -> list[int] | None:
    """The code's run lengths where they make up a bitmap of this size."""
    pixels = size_hw[0] * size_hw[1]
    if pixels > MOST_PIXELS or len(code) > 6 * min(MOST_RUNS, pixels + 2):  # 6 characters a run
        return None
    runs = _run_lengths(code)
    return runs if runs is not None and sum(runs) == pixels else None


def _run_lengths(code: bytes) -> list[int] | None:
    """Runs of a compressed RLE: 5 bits a character, each run minus the one two before it."""
    runs: list[int] = []
    position = 0
    while position < len(code):
        value, shift, more = 0, 0, True
        while more:
            if position >= len(code) or not 48 <= code[position] < 112 or shift > 30:
                return None
            digit = code[position] - 48
            value |= (digit & 31) << shift
            more = bool(digit & 32)
            shift += 5
            position += 1
            if not more and digit & 16:
                value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            return None
    return runs

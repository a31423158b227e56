"""Masks of objects: in stores as codes of a few hundred bytes each, from heads as probabilities.

A code is the `counts` of COCO's compressed run lengths (pycocotools), for a bitmap of a known
size; the empty code stands for an annotation without a mask.
"""

from __future__ import annotations

import math
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
_THRESHOLD = 0.5  # probability from which a pixel belongs to the object


def encode_segmentation(segmentation: Any, size_hw: SizeHW) -> bytes:
    """A COCO `segmentation` as one code; parts outside the image are cut off.

    It may be None, an RLE, or polygons [[x, y, ...], ...] in pixels, of which those of fewer than
    3 points are left out: COCO itself holds some. Raises ValueError on anything else, where no
    polygon is left, and on an RLE of another size.
    """
    if segmentation is None or segmentation == []:
        return NO_MASK
    if isinstance(segmentation, dict):
        return _encode_rle(segmentation, size_hw)
    if not isinstance(segmentation, list):
        raise ValueError(f"expected polygons or an RLE, got {type(segmentation).__name__}")
    polygons = [_clipped(polygon, size_hw) for polygon in segmentation if _is_polygon(polygon)]
    if not polygons:
        raise ValueError("expected a polygon of at least 3 points [x, y, x, y, x, y, ...]")
    height, width = size_hw
    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return bytes(merged["counts"])


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
            f"{size_hw[1]} pixels; annotations.npz was not written by `cachedet extract`"
        )
    return runs


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


def _encode_rle(segmentation: dict[str, Any], size_hw: SizeHW) -> bytes:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != list(size_hw):
        raise ValueError(f"expected an RLE of size {list(size_hw)}, got {size}")
    height, width = size_hw
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts):
            raise ValueError("expected run lengths that are whole numbers from 0")
        total, expected = sum(counts), height * width
        if total != expected:
            raise ValueError(f"expected run lengths that sum to {expected}, got {total}")
        return bytes(coco_mask.frPyObjects(segmentation, height, width)["counts"])
    if not isinstance(counts, str) or not counts.isascii():
        raise ValueError(f"expected `counts` as a list or a string, got {type(counts).__name__}")
    if _covering_runs(counts.encode(), size_hw) is None:
        raise ValueError(f"the compressed RLE does not cover {height} x {width} pixels")
    return counts.encode()


def _covering_runs(code: bytes, size_hw: SizeHW) -> list[int] | None:
    """The code's run lengths where they make up a bitmap of this size."""
    runs = _run_lengths(code)
    return runs if runs is not None and sum(runs) == size_hw[0] * size_hw[1] else None


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


def _is_polygon(polygon: Any) -> bool:
    return (
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(isinstance(value, int | float) and math.isfinite(value) for value in polygon)
    )


def _clipped(polygon: list[float], size_hw: SizeHW) -> list[float]:
    height, width = size_hw
    return [
        min(max(float(value), 0.0), float(width if number % 2 == 0 else height))
        for number, value in enumerate(polygon)
    ]

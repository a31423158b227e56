"""Box arithmetic. All boxes are xyxy in pixels of the view.

Letters: M boxes. Deltas are (dx, dy, dw, dh): shift of the centre in units of the anchor's sides,
log ratio of the sides (R-CNN, arXiv 1311.2524, appendix C).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cachedet.structures import SizeHW

# exp(dw) may grow a 16 px anchor to a 1000 px box at most, so that no side overflows.
MAX_LOG_RATIO = math.log(1000.0 / 16.0)


def encode_deltas(boxes: Tensor, anchors: Tensor) -> Tensor:
    """(M, 4) boxes relative to (M, 4) anchors -> (M, 4) deltas; inverse of `apply_deltas`."""
    centers, sizes = _centers_and_sizes(boxes)
    anchor_centers, anchor_sizes = _centers_and_sizes(anchors)
    shifts = (centers - anchor_centers) / anchor_sizes
    return torch.cat([shifts, torch.log(sizes / anchor_sizes)], dim=-1)


def apply_deltas(deltas: Tensor, anchors: Tensor) -> Tensor:
    """(..., 4) deltas moved onto (..., 4) anchors -> (..., 4) boxes."""
    anchor_centers, anchor_sizes = _centers_and_sizes(anchors)
    centers = anchor_centers + deltas[..., :2] * anchor_sizes
    halves = anchor_sizes * torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_RATIO)) / 2
    return torch.cat([centers - halves, centers + halves], dim=-1)


def clip_boxes(boxes: Tensor, size_hw: SizeHW) -> Tensor:
    """(..., 4) boxes cut at the edges of a picture of `size_hw` pixels."""
    height, width = size_hw
    limits = boxes.new_tensor([width, height, width, height])
    return boxes.clamp(min=0).minimum(limits)


def covered_fraction(boxes: Tensor, regions: Tensor) -> Tensor:
    """(M, 4) boxes, (R, 4) regions -> (M, R) share of each box's area that a region covers."""
    top_left = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    bottom_right = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=-1)
    return overlap / areas[:, None].clamp(min=1e-6)


def _centers_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sizes = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + sizes / 2, sizes

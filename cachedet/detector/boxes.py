"""Box arithmetic. All boxes are xyxy in pixels of the view.

Letters: M boxes. Deltas are (dx, dy, dw, dh): shift of the centre in units of the anchor's sides,
log ratio of the sides (R-CNN, arXiv 1311.2524, appendix C).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from cachedet.structures import Detections, SizeHW

Sizes = Sequence[SizeHW] | Tensor
"""Valid pixels of N images; where shapes may not depend on data, a tensor (N, 2)."""


@dataclass(frozen=True, kw_only=True)
class Postprocess:
    """How candidates become detections (PAPER 2.2)."""

    score_threshold: float  # candidates at or below it are dropped
    pre_nms: int  # most candidates, over all classes, that go into the suppression
    nms_iou: float  # of two boxes of a class that overlap more, the weaker is dropped
    max_detections: int  # of an image

    def __call__(
        self, scores: Tensor, boxes: Tensor, *, size_hw: SizeHW, image_id: int
    ) -> Detections:
        """Detections of one image, best first, clipped to the `size_hw` valid pixels of the view.

        Scores are (T, K), boxes (T, 4), or (T, K, 4) where every class has its own.
        """
        num_classes = scores.shape[1]
        flat = scores.flatten()
        candidates = (flat > self.score_threshold).nonzero().squeeze(1)
        best = flat[candidates].topk(min(self.pre_nms, len(candidates))).indices
        candidates = candidates[best]
        labels = candidates % num_classes
        rows = candidates // num_classes
        chosen = boxes[rows, labels] if boxes.ndim == 3 else boxes[rows]
        chosen = clip_boxes(chosen, size_hw)
        solid = ((chosen[:, 2:] - chosen[:, :2]) > 0).all(dim=1)
        chosen, labels, flat = chosen[solid], labels[solid], flat[candidates][solid]
        kept: Tensor = batched_nms(chosen, flat, labels, self.nms_iou)[: self.max_detections]
        return Detections(
            image_id=image_id, boxes=chosen[kept], scores=flat[kept], labels=labels[kept]
        )


# exp(dw) may grow a 16 px anchor to a 1000 px box at most, so that no side overflows.
MAX_LOG_RATIO = math.log(1000.0 / 16.0)
_LEAST_AREA = 1e-6  # square pixels; keeps boxes without area from dividing by zero


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
    """(..., 4) boxes cut at the edges of an image of `size_hw` pixels."""
    return boxes.clamp(min=0).minimum(_limits(boxes, [size_hw])[0])


def clip_to_sizes(boxes: Tensor, sizes_hw: Sizes) -> Tensor:
    """(N, R, 4) boxes of N images, each cut at the edges of its own image."""
    return boxes.clamp(min=0).minimum(_limits(boxes, sizes_hw)[:, None])


def clip_to_images(boxes: Tensor, sizes_hw: Sizes, image: Tensor) -> Tensor:
    """(R, 4) boxes, each cut at the edges of the image (R,) it lies in."""
    return boxes.clamp(min=0).minimum(_limits(boxes, sizes_hw)[image])


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """(..., M, 4) and (..., R, 4) boxes -> (..., M, R) intersection over union; 0 without area."""
    overlap = _overlaps(boxes, others)
    union = box_areas(boxes)[..., :, None] + box_areas(others)[..., None, :] - overlap
    return overlap / union.clamp(min=_LEAST_AREA)


def covered_fraction(boxes: Tensor, regions: Tensor) -> Tensor:
    """(..., M, 4) boxes, (..., R, 4) regions -> (..., M, R) share of each box in a region."""
    return _overlaps(boxes, regions) / box_areas(boxes)[..., :, None].clamp(min=_LEAST_AREA)


def box_areas(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...) square pixels."""
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)


def _limits(boxes: Tensor, sizes_hw: Sizes) -> Tensor:
    """(N, 4): the largest coordinates a box of each image may have."""
    if isinstance(sizes_hw, Tensor):
        return sizes_hw[:, [1, 0, 1, 0]].to(boxes.dtype)
    return boxes.new_tensor([[width, height, width, height] for height, width in sizes_hw])


def _overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """(..., M, 4), (..., R, 4) -> (..., M, R) square pixels, side by side in x and in y."""
    x1, y1, x2, y2 = boxes[..., :, None, :].unbind(-1)
    other_x1, other_y1, other_x2, other_y2 = others[..., None, :, :].unbind(-1)
    width = torch.minimum(x2, other_x2).sub_(torch.maximum(x1, other_x1)).clamp_(min=0)
    height = torch.minimum(y2, other_y2).sub_(torch.maximum(y1, other_y1)).clamp_(min=0)
    return width.mul_(height)


def _centers_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sizes = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + sizes / 2, sizes

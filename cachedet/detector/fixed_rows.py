"""Detection in fixed numbers of rows, as graphs without Python hold it (`cachedet export`).

The same choices as `Postprocess` and `RPN.propose` make image by image, for all images at once:
what is left out keeps its row, with a score that says so. Among equal scores the order may differ.

Letters: N images, T rows of candidates, K classes, Q rows before and D after suppression.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms

from cachedet.detector.boxes import Postprocess


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """All that a detector scores, before suppression; pixels of the views, clipped to them."""

    boxes: Tensor  # (N, T, 4), or (N, T, K, 4) where every class has its own
    scores: Tensor  # (N, T, K); 0 in a row without a box


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedDetections:
    """D rows an image, best first; those behind the last detection have score 0."""

    boxes: Tensor  # (N, D, 4)
    scores: Tensor  # (N, D)
    labels: Tensor  # (N, D) int64
    masks: Tensor | None = None  # (N, D, S, S) probabilities, the cells of each box


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranked:
    """The best rows that survived suppression."""

    scores: Tensor  # (N, D), -inf behind the last one
    rows: Tensor  # (N, D) of the Q that came in


@torch.library.custom_op("cachedet::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou: float) -> Tensor:
    """Whether each of the rows (N, Q) survives: no better one of its group overlaps it more.

    Rows of score -inf are out. An operator of its own, since exporters know no batches of images;
    `exporting/onnx_file.py` says what it is in ONNX.
    """
    stays = torch.zeros_like(scores, dtype=torch.bool)
    for n, is_in in enumerate(scores > -math.inf):
        rows = is_in.nonzero()[:, 0]
        kept = batched_nms(boxes[n, rows], scores[n, rows], groups[n, rows], iou)
        stays[n, rows[kept]] = True
    return stays


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def rank(
    boxes: Tensor, scores: Tensor, groups: Tensor, *, num_groups: int, iou: float, most: int
) -> Ranked:
    """Suppress rows (N, Q) within their groups, and take the best `most` of the others.

    Boxes (N, Q, 4) without area, and scores of -inf, do not take part.
    """
    solid = ((boxes[..., 2:] - boxes[..., :2]) > 0).all(dim=-1)
    scores = torch.where(solid, scores, -math.inf)
    stays = suppress(boxes, scores, groups, num_groups, iou)
    return _best(torch.where(stays, scores, -math.inf), most)


def select(postprocess: Postprocess, candidates: Candidates) -> FixedDetections:
    """What `postprocess` makes of each image's candidates."""
    boxes, scores = candidates.boxes, candidates.scores
    num_classes = scores.shape[2]
    flat = scores.flatten(1)
    flat = torch.where(flat > postprocess.score_threshold, flat, -math.inf)
    before = _best(flat, postprocess.pre_nms)
    labels, rows = before.rows % num_classes, before.rows // num_classes
    chosen = _take(boxes.flatten(1, 2), before.rows) if boxes.ndim == 4 else _take(boxes, rows)
    after = rank(
        chosen,
        before.scores,
        labels,
        num_groups=num_classes,
        iou=postprocess.nms_iou,
        most=postprocess.max_detections,
    )
    found = after.scores > -math.inf
    return FixedDetections(
        boxes=_take(chosen, after.rows) * found[..., None],
        scores=torch.where(found, after.scores, 0.0),
        labels=torch.where(found, labels.gather(1, after.rows), 0),
    )


def image_of_rows(rows: Tensor) -> Tensor:
    """(N * D,): which of the N images each of the rows (N, D, ...) belongs to, one by one."""
    count, each = rows.shape[:2]
    return torch.arange(count, device=rows.device)[:, None].expand(count, each).reshape(-1)


def _best(scores: Tensor, most: int) -> Ranked:
    """The highest `most` of (N, Q), and where they are; rows are added where there are too few."""
    best, rows = F.pad(scores, (0, most), value=-math.inf).topk(most, dim=1)
    return Ranked(scores=best, rows=rows.clamp(max=scores.shape[1] - 1))


def _take(boxes: Tensor, rows: Tensor) -> Tensor:
    """(N, T, 4), (N, Q) -> (N, Q, 4)"""
    return boxes.gather(1, rows[..., None].expand(-1, -1, 4))

"""Which truth each box shall learn, and which of the boxes teach in a step. All by whole batches.

Letters: N pictures, T boxes to match (anchors or RoIs), M gt boxes of the fullest picture,
S sampled boxes of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cachedet.detector.boxes import covered_fraction, pairwise_iou
from cachedet.structures import Targets

BACKGROUND = -1
IGNORED = -2
_CROWD_COVER = 0.5  # a box this much inside a crowd region teaches nothing
_MOST_PAIRS = 2**24  # IoU values held at a time: 64 MB in float32


@dataclass(frozen=True, kw_only=True, eq=False)
class PaddedTruth:
    """The truth of N pictures in rectangular tensors; rows beyond a picture's boxes are unused."""

    boxes: Tensor  # (N, M, 4)
    labels: Tensor  # (N, M)
    usable: Tensor  # (N, M) a box of the picture that is no crowd
    crowd: Tensor  # (N, M)

    def __len__(self) -> int:
        return len(self.boxes)

    def boxes_of(self, matched: Tensor) -> Tensor:
        """(N, S) indices from `match_boxes` -> (N, S, 4); meaningless where nothing matched."""
        return self.boxes.gather(1, matched.clamp(min=0)[..., None].expand(-1, -1, 4))

    def labels_of(self, matched: Tensor) -> Tensor:
        """(N, S) indices -> (N, S); meaningless where nothing matched."""
        return self.labels.gather(1, matched.clamp(min=0))


def pad_truth(targets: Sequence[Targets]) -> PaddedTruth:
    """At least one row a picture, so that empty pictures need no case of their own."""
    most = max(1, *(len(of_picture.boxes) for of_picture in targets))
    device, shape = targets[0].boxes.device, (len(targets), most)
    boxes = torch.zeros(*shape, 4, dtype=targets[0].boxes.dtype, device=device)
    labels = torch.zeros(shape, dtype=torch.int64, device=device)
    usable = torch.zeros(shape, dtype=torch.bool, device=device)
    crowd = torch.zeros(shape, dtype=torch.bool, device=device)
    for n, of_picture in enumerate(targets):
        count = len(of_picture.boxes)
        boxes[n, :count] = of_picture.boxes
        labels[n, :count] = of_picture.labels
        usable[n, :count] = ~of_picture.crowd
        crowd[n, :count] = of_picture.crowd
    return PaddedTruth(boxes=boxes, labels=labels, usable=usable, crowd=crowd)


@torch.no_grad()
def match_boxes(
    boxes: Tensor,
    truth: PaddedTruth,
    *,
    foreground_iou: float,
    background_iou: float,
    force_best: bool,
) -> Tensor:
    """Which gt box each box shall learn (PAPER 2.2).

    A box takes the truth it overlaps most if the IoU is at least `foreground_iou`; below
    `background_iou` it is BACKGROUND, between the two IGNORED, and so is background inside a crowd.

    Args:
        boxes: (T, 4) the same for all pictures, or (N, T, 4).
        truth: of the N pictures.
        foreground_iou: least IoU of a positive.
        background_iou: IoU below which a box is background; at most `foreground_iou`.
        force_best: the best boxes of every truth are forced to it, so that no truth goes untaught.

    Returns:
        (N, T) int64 index into the M boxes of `truth`, BACKGROUND or IGNORED.
    """
    step = max(1, _MOST_PAIRS // max(1, boxes.shape[-2] * truth.boxes.shape[1]))
    parts = []
    for start in range(0, len(truth), step):
        some = slice(start, start + step)
        own = boxes[some] if boxes.ndim == 3 else boxes[None]
        iou = pairwise_iou(truth.boxes[some], own)  # (n, M, T)
        iou = iou.masked_fill_(~truth.usable[some, :, None], -1.0)
        matched = _best_match(iou, foreground_iou, background_iou)
        matched = _force_best(matched, iou) if force_best else matched
        parts.append(_ignore_crowd(matched, own, truth.boxes[some], truth.crowd[some]))
    return torch.cat(parts)


def _best_match(iou: Tensor, foreground_iou: float, background_iou: float) -> Tensor:
    best_iou, matched = iou.max(dim=1)
    matched = torch.where(best_iou < foreground_iou, IGNORED, matched)
    return torch.where(best_iou < background_iou, BACKGROUND, matched)


def _force_best(matched: Tensor, iou: Tensor) -> Tensor:
    """Where several truths claim a box, the one that overlaps it most gets it."""
    is_best_of_truth = (iou == iou.amax(dim=2, keepdim=True)) & (iou > 0)
    forced_iou, forcing = torch.where(is_best_of_truth, iou, 0.0).max(dim=1)
    return torch.where(forced_iou > 0, forcing, matched)


def _ignore_crowd(matched: Tensor, boxes: Tensor, regions: Tensor, crowd: Tensor) -> Tensor:
    if not bool(crowd.any()):
        return matched
    covered = covered_fraction(boxes, regions) * crowd[:, None, :]  # (n, T, M)
    return torch.where(
        (matched == BACKGROUND) & (covered.amax(dim=2) >= _CROWD_COVER), IGNORED, matched
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Up to S boxes of each picture that teach in this step, positives first."""

    idx: Tensor  # (N, S) into the T boxes
    is_positive: Tensor  # (N, S)
    is_valid: Tensor  # (N, S); False where a picture had fewer boxes to offer


@torch.no_grad()
def sample_boxes(
    matched: Tensor,
    *,
    size: int,
    positive_fraction: float,
    generator: torch.Generator | None = None,
) -> Sample:
    """Draw `size` boxes of each picture at random, at most this share of them positive.

    Missing positives are made up for by background. Random numbers come from the CPU, so that
    resuming needs one random state on any device.

    Args:
        matched: (N, T) from `match_boxes`; IGNORED is never drawn.
        size: S, boxes of a picture.
        positive_fraction: largest share of positives.
        generator: of random numbers on the CPU; None is torch's own.
    """
    draw = torch.rand(matched.shape, generator=generator).to(matched.device)
    most_positive = int(size * positive_fraction)
    positive_idx, positive_valid = _draw(matched >= 0, draw, min(most_positive, draw.shape[1]))
    background_idx, background_valid = _draw(matched == BACKGROUND, draw, min(size, draw.shape[1]))
    room = size - positive_valid.sum(dim=1, keepdim=True)
    place = torch.arange(background_idx.shape[1], device=matched.device)
    background_valid &= place < room
    idx = torch.cat([positive_idx, background_idx], dim=1)
    is_valid = torch.cat([positive_valid, background_valid], dim=1)
    order = is_valid.int().argsort(dim=1, descending=True, stable=True)[:, :size]
    idx, is_valid = idx.gather(1, order), is_valid.gather(1, order)
    return Sample(idx=idx, is_positive=is_valid & (matched.gather(1, idx) >= 0), is_valid=is_valid)


def _draw(wanted: Tensor, draw: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` wanted boxes with the largest numbers drawn: indices and whether there was one"""
    drawn, idx = torch.where(wanted, draw, -1.0).topk(count, dim=1)
    return idx, drawn >= 0

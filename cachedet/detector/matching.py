"""Which gt box each box shall learn, and which boxes teach in a step. All by whole batches.

Letters: N images, T boxes to match (anchors or RoIs), M gt boxes of the fullest image,
S sampled boxes of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from cachedet.config.detector import LowQuality
from cachedet.detector.boxes import covered_fraction, pairwise_iou
from cachedet.distributed.collective import rand_of_rank
from cachedet.structures import Targets

AllowedLowQuality = Literal["none", LowQuality]

BACKGROUND = -1
IGNORED = -2
_CROWD_COVER = 0.5  # a box this much inside a crowd region teaches nothing
_MOST_PAIRS = 2**23  # IoU values at a time: 32 MB in float32, and a few such tensors at once


@dataclass(frozen=True, kw_only=True)
class MatchRule:
    """Which gt box a box takes (PAPER 2.2).

    A box takes the gt box it overlaps most if the IoU is at least `foreground_iou`; below
    `background_iou` it is BACKGROUND, between the two IGNORED, and so is background inside a crowd.
    With `allow_low_quality` "one", each gt box also gets the box that overlaps it most, whatever
    the IoU; with "ties", every box that overlaps it as much as that one, which is many where a gt
    box lies inside its boxes. Where two gt boxes claim a box, the one it overlaps more has it.
    """

    foreground_iou: float
    background_iou: float
    allow_low_quality: AllowedLowQuality


@dataclass(frozen=True, kw_only=True, eq=False)
class PaddedGroundTruth:
    """The gt boxes of N images in rectangular tensors; rows beyond an image's boxes are unused."""

    boxes: Tensor  # (N, M, 4)
    labels: Tensor  # (N, M)
    usable: Tensor  # (N, M) a box of the image that is no crowd
    crowd: Tensor  # (N, M)
    counts: tuple[int, ...]  # boxes of each image, crowd included
    has_crowd: bool

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, images: slice) -> PaddedGroundTruth:
        """Some of the images, without the columns that none of them uses."""
        counts = self.counts[images]
        return self._take((images, slice(max(1, *counts))), counts)

    def of_rois(self, image: Tensor) -> PaddedGroundTruth:
        """One row of ground truth for each of R RoIs, from the image (R,) it lies in."""
        return self._take(image, (self.boxes.shape[1],) * len(image))

    def _take(self, rows: Any, counts: tuple[int, ...]) -> PaddedGroundTruth:
        return replace(
            self,
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            usable=self.usable[rows],
            crowd=self.crowd[rows],
            counts=counts,
        )


def pad_ground_truth(targets: Sequence[Targets]) -> PaddedGroundTruth:
    """At least one row an image, so that empty images need no case of their own."""
    counts = tuple(len(of_image.boxes) for of_image in targets)
    shape = len(targets), max(1, *counts)
    boxes = targets[0].boxes.new_zeros(*shape, 4)
    labels = boxes.new_zeros(shape, dtype=torch.int64)
    usable, crowd = (boxes.new_zeros(shape, dtype=torch.bool) for _ in range(2))
    for n, (of_image, count) in enumerate(zip(targets, counts, strict=True)):
        boxes[n, :count] = of_image.boxes
        labels[n, :count] = of_image.labels
        usable[n, :count] = ~of_image.crowd
        crowd[n, :count] = of_image.crowd
    return PaddedGroundTruth(
        boxes=boxes,
        labels=labels,
        usable=usable,
        crowd=crowd,
        counts=counts,
        has_crowd=bool(crowd.any()),
    )


@torch.no_grad()
def match_boxes(boxes: Tensor, ground_truth: PaddedGroundTruth, rule: MatchRule) -> Tensor:
    """Which gt box each box shall learn: (T, 4) the same for all N images, or (N, T, 4) -> (N, T).

    Returned are int64 indices into the M boxes of `ground_truth`, BACKGROUND or IGNORED.
    """
    num_boxes = boxes.shape[-2]
    if len(ground_truth) == 0:
        return torch.zeros(0, num_boxes, dtype=torch.int64, device=boxes.device)
    step = max(1, _MOST_PAIRS // max(1, num_boxes * ground_truth.boxes.shape[1]))
    parts = []
    for start in range(0, len(ground_truth), step):
        some_ground_truth = ground_truth[start : start + step]
        some_boxes = boxes[start : start + step] if boxes.ndim == 3 else boxes[None]
        width = max(1, _MOST_PAIRS // some_ground_truth.boxes[..., 0].numel())
        parts.append(_match_some(torch.split(some_boxes, width, dim=1), some_ground_truth, rule))
    return torch.cat(parts)


def _match_some(
    pieces: Sequence[Tensor], ground_truth: PaddedGroundTruth, rule: MatchRule
) -> Tensor:
    """Images that fit in memory together, against their boxes piece by piece: (n, T)."""
    matched, best_iou_of_gt, best_of_gt = [], [], []
    first = 0
    for boxes in pieces:
        iou = _usable_iou(ground_truth, boxes)
        of_piece = _best_match(iou, rule)
        matched.append(
            _ignore_crowd(of_piece, boxes, ground_truth) if ground_truth.has_crowd else of_piece
        )
        if rule.allow_low_quality != "none":
            best_iou, best = iou.max(dim=2)
            best_iou_of_gt.append(best_iou)
            best_of_gt.append(best + first)
        first += boxes.shape[1]
    if rule.allow_low_quality == "none":
        return torch.cat(matched, dim=1)
    best_iou, piece = torch.stack(best_iou_of_gt).max(dim=0)
    if rule.allow_low_quality == "one":
        best = torch.stack(best_of_gt).gather(0, piece[None])[0]
        return _allow_one(torch.cat(matched, dim=1), best, best_iou)
    with_ties = [
        _allow_ties(of_piece, _usable_iou(ground_truth, boxes), best_iou)
        for boxes, of_piece in zip(pieces, matched, strict=True)
    ]
    return torch.cat(with_ties, dim=1)


def _usable_iou(ground_truth: PaddedGroundTruth, boxes: Tensor) -> Tensor:
    """(n, M, t), -1 for crowd and for rows without a box."""
    return pairwise_iou(ground_truth.boxes, boxes).masked_fill_(
        ~ground_truth.usable[..., None], -1.0
    )


def _best_match(iou: Tensor, rule: MatchRule) -> Tensor:
    best_iou, matched = iou.max(dim=1)
    matched = torch.where(best_iou < rule.foreground_iou, IGNORED, matched)
    return torch.where(best_iou < rule.background_iou, BACKGROUND, matched)


def _allow_one(matched: Tensor, best: Tensor, best_iou: Tensor) -> Tensor:
    """Give each gt box its best box: `best`, `best_iou` (n, M), `matched` (n, T) -> (n, T)."""
    claimed = torch.zeros_like(matched, dtype=best_iou.dtype)
    claimed = claimed.scatter_reduce(1, best, best_iou, "amax")
    wins = (best_iou > 0) & (best_iou == claimed.gather(1, best))
    nobody = best.shape[1]
    number = torch.arange(nobody, device=best.device).expand_as(best)
    winner = torch.full_like(matched, nobody)  # of equals the first: no order of writing decides
    winner = winner.scatter_reduce(1, best, torch.where(wins, number, nobody), "amin")
    return torch.where(winner < nobody, winner, matched)


def _allow_ties(matched: Tensor, iou: Tensor, best_iou: Tensor) -> Tensor:
    """Give each gt box all its best boxes: `iou` (n, M, t), `best_iou` (n, M) of all pieces."""
    is_best = (iou == best_iou[..., None]) & (iou > 0)
    low_quality_iou, winner = torch.where(is_best, iou, 0.0).max(dim=1)
    return torch.where(low_quality_iou > 0, winner, matched)


def _ignore_crowd(matched: Tensor, boxes: Tensor, ground_truth: PaddedGroundTruth) -> Tensor:
    covered = covered_fraction(boxes, ground_truth.boxes) * ground_truth.crowd[:, None]  # (n, t, M)
    in_crowd = covered.amax(dim=2) >= _CROWD_COVER
    return torch.where((matched == BACKGROUND) & in_crowd, IGNORED, matched)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Up to S boxes of each image that teach in this step, positives first."""

    idx: Tensor  # (N, S) into the T boxes
    is_positive: Tensor  # (N, S)
    is_valid: Tensor  # (N, S); False where an image had fewer boxes to offer


@torch.no_grad()
def sample_boxes(
    matched: Tensor,
    *,
    size: int,
    positive_fraction: float,
    generator: torch.Generator | None = None,
) -> Sample:
    """Draw `size` boxes of each image at random, at most this share of them positive.

    Missing positives are made up for by background. Random numbers come from the CPU, so that
    resuming needs one random state on any device; those of an image do not depend on how many
    ranks share the batch. What is IGNORED in `matched` (N, T) is never drawn.
    """
    draw = rand_of_rank(*matched.shape, generator=generator).to(matched.device)
    most_positive = int(size * positive_fraction)
    positive_idx, positive_valid = _draw(matched >= 0, draw, min(most_positive, draw.shape[1]))
    background_idx, background_valid = _draw(matched == BACKGROUND, draw, min(size, draw.shape[1]))
    room = size - positive_valid.sum(dim=1, keepdim=True)
    index = torch.arange(background_idx.shape[1], device=matched.device)
    background_valid &= index < room
    idx = torch.cat([positive_idx, background_idx], dim=1)
    is_valid = torch.cat([positive_valid, background_valid], dim=1)
    order = is_valid.int().argsort(dim=1, descending=True, stable=True)[:, :size]
    idx, is_valid = idx.gather(1, order), is_valid.gather(1, order)
    return Sample(idx=idx, is_positive=is_valid & (matched.gather(1, idx) >= 0), is_valid=is_valid)


def _draw(wanted: Tensor, draw: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` wanted boxes with the largest numbers drawn: indices and whether there was one"""
    drawn, idx = torch.where(wanted, draw, -1.0).topk(count, dim=1)
    return idx, drawn >= 0

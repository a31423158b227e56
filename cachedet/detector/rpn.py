"""Region proposal network (arXiv 1506.01497 section 3) on P levels, with the numbers of PAPER 2.2.

Letters: N images, L levels, A anchors per cell, T anchors of all levels, S sampled anchors,
R proposals of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from cachedet.detector.anchors import AnchorGenerator
from cachedet.detector.boxes import apply_deltas, clip_to_sizes, encode_deltas
from cachedet.detector.fixed_rows import rank
from cachedet.detector.layers import LayerStyle
from cachedet.detector.matching import MatchRule, PaddedGroundTruth, match_boxes, sample_boxes
from cachedet.detector.towers import Tower, init_normal, per_anchor
from cachedet.distributed.collective import count_over_ranks
from cachedet.structures import Features, SizeHW


@dataclass(frozen=True, kw_only=True, eq=False)
class Proposals:
    """Boxes that may hold an object, R an image; places without one are not valid."""

    boxes: Tensor  # (N, R, 4), clipped to the images
    scores: Tensor  # (N, R) objectness as logits, falling
    is_valid: Tensor  # (N, R)


@dataclass(frozen=True, kw_only=True, eq=False)
class RPNOutput:
    """What the head says of every anchor, level by level, fine to coarse."""

    logits: list[Tensor]  # L of (N, T_level)
    deltas: list[Tensor]  # L of (N, T_level, 4)


@dataclass(frozen=True, kw_only=True)
class ProposalCounts:
    """How many candidates of each level go into the suppression, and how many come out of all."""

    pre_nms: int
    post_nms: int


class RPNHead(nn.Module):
    """A tower that all levels share, each level with its own norms, and two 1x1 predictors."""

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        num_levels: int,
        num_anchors: int,
        num_convs: int,
        style: LayerStyle,
    ) -> None:
        super().__init__()
        self.tower = Tower(
            in_channels=in_channels,
            channels=channels,
            num_levels=num_levels,
            num_convs=num_convs,
            style=style,
        )
        self.objectness = nn.Conv2d(self.tower.out_channels, num_anchors, 1)
        self.box_deltas = nn.Conv2d(self.tower.out_channels, num_anchors * 4, 1)
        for predictor in (self.objectness, self.box_deltas):
            init_normal(predictor, std=0.01)

    def forward(self, pyramid: Features) -> RPNOutput:
        """P levels (N, C, h, w) -> logits and deltas of every anchor."""
        maps = [self.tower(level, index) for index, level in enumerate(pyramid.values())]
        return RPNOutput(
            logits=[per_anchor(self.objectness(level), 1).squeeze(2) for level in maps],
            deltas=[per_anchor(self.box_deltas(level), 4) for level in maps],
        )


class RPN(nn.Module):
    """Scores anchors as object or not, and proposes the best of them, moved, as boxes.

    The class loss is a mean over `samples` anchors an image, the box loss one over coordinates. The
    paper's code divides the first by its 512 RoIs, which is a `class_weight` of 0.5 (PAPER 2.2).
    """

    def __init__(
        self,
        *,
        head: RPNHead,
        anchors: AnchorGenerator,
        match_rule: MatchRule,
        samples: int,  # anchors of an image that teach in a step
        positive_fraction: float,  # the largest among them
        class_weight: float,
        huber_delta: float,  # where the box loss turns from quadratic to linear
        box_weight: float,
        nms_iou: float,  # of two proposals of a level that overlap more, the weaker is dropped
        train_counts: ProposalCounts,
        test_counts: ProposalCounts,
    ) -> None:
        super().__init__()
        self.head = head
        self.anchors = anchors
        self.match_rule = match_rule
        self.samples, self.positive_fraction = samples, positive_fraction
        self.class_weight = class_weight
        self.huber_delta, self.box_weight = huber_delta, box_weight
        self.nms_iou = nms_iou
        self.train_counts, self.test_counts = train_counts, test_counts

    def forward(self, pyramid: Features) -> RPNOutput:
        """P levels (N, C, h, w) -> logits and deltas of every anchor."""
        output: RPNOutput = self.head(pyramid)
        return output

    def losses(
        self, output: RPNOutput, pyramid: Features, ground_truth: PaddedGroundTruth
    ) -> dict[str, Tensor]:
        """{"rpn_class": mean over the sampled anchors, "rpn_box": over coordinates of positives}

        Both times their weights.
        """
        anchors = self.anchors(pyramid)
        matched = match_boxes(anchors, ground_truth, self.match_rule)
        sample = sample_boxes(matched, size=self.samples, positive_fraction=self.positive_fraction)
        logits = torch.cat(output.logits, dim=1).gather(1, sample.idx)
        class_loss = F.binary_cross_entropy_with_logits(
            logits, sample.is_positive.to(logits.dtype), reduction="none"
        )
        image, slot = sample.is_positive.nonzero(as_tuple=True)
        taken = sample.idx[image, slot]
        wanted = encode_deltas(ground_truth.boxes[image, matched[image, taken]], anchors[taken])
        deltas = torch.cat(output.deltas, dim=1)[image, taken]
        box_loss = F.huber_loss(deltas, wanted, delta=self.huber_delta, reduction="sum")
        return {
            "rpn_class": (class_loss * sample.is_valid).sum()
            * (self.class_weight / (count_over_ranks(len(logits)) * self.samples)),
            "rpn_box": box_loss * (self.box_weight / max(count_over_ranks(wanted.numel()), 1)),
        }

    @torch.no_grad()
    def propose(
        self, output: RPNOutput, pyramid: Features, *, sizes_hw: Sequence[SizeHW]
    ) -> Proposals:
        """The best boxes of each image, suppressed level by level (arXiv 1612.03144 4.1)."""
        counts = self.train_counts if self.training else self.test_counts
        scores, boxes, levels = self._candidates(output, self.anchors(pyramid), counts.pre_nms)
        boxes = clip_to_sizes(boxes, sizes_hw)
        solid = ((boxes[..., 2:] - boxes[..., :2]) > 0).all(dim=-1)
        shape = len(boxes), counts.post_nms
        kept_boxes = boxes.new_zeros(*shape, 4)
        objectness, is_valid = scores.new_zeros(shape), solid.new_zeros(shape)
        for n, is_solid in enumerate(solid):
            candidates, logits = boxes[n, is_solid], scores[n, is_solid]
            kept = batched_nms(candidates, logits, levels[is_solid], self.nms_iou)
            kept = kept[: counts.post_nms]
            kept_boxes[n, : len(kept)] = candidates[kept]
            objectness[n, : len(kept)] = logits[kept]
            is_valid[n, : len(kept)] = True
        return Proposals(boxes=kept_boxes, scores=objectness, is_valid=is_valid)

    @torch.no_grad()
    def propose_rows(self, output: RPNOutput, pyramid: Features, sizes_hw: Tensor) -> Proposals:
        """`propose` for graphs, of images of the sizes (N, 2)."""
        anchors, counts = self.anchors.make(pyramid), self.test_counts
        scores, boxes, levels = self._candidates(output, anchors, counts.pre_nms)
        boxes = clip_to_sizes(boxes, sizes_hw)
        groups = levels.expand(scores.shape)
        best = rank(
            boxes,
            scores,
            groups,
            num_groups=len(output.logits),
            iou=self.nms_iou,
            most=counts.post_nms,
        )
        is_valid = best.scores > -math.inf
        kept = boxes.gather(1, best.rows[..., None].expand(-1, -1, 4))
        return Proposals(
            boxes=kept * is_valid[..., None],
            scores=torch.where(is_valid, best.scores, 0.0),
            is_valid=is_valid,
        )

    def _candidates(
        self, output: RPNOutput, anchors: Tensor, pre_nms: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best anchors of each level, moved: logits (N, Q), boxes (N, Q, 4), level (Q,)."""
        scores, boxes, levels = [], [], []
        per_level = torch.split(anchors, [logits.shape[1] for logits in output.logits])
        for index, level_anchors in enumerate(per_level):
            taken = torch.sym_min(pre_nms, level_anchors.shape[0])
            best, idx = output.logits[index].float().topk(taken, dim=1)
            deltas = output.deltas[index].float().gather(1, idx[..., None].expand(-1, -1, 4))
            scores.append(best)
            boxes.append(apply_deltas(deltas, level_anchors[idx]))
            levels.append(torch.full_like(idx[0], index))
        return torch.cat(scores, dim=1), torch.cat(boxes, dim=1), torch.cat(levels)

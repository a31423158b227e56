"""RetinaNet (arXiv 1708.02002) on features, with the numbers of PAPER 2.2 and 2.5.

Letters: N images, K classes, A anchors per cell, T anchors of all levels, C channels, M gt boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from cachedet.detector.anchors import AnchorGenerator
from cachedet.detector.boxes import Postprocess, apply_deltas, clip_to_sizes, encode_deltas
from cachedet.detector.costs import neck_costs
from cachedet.detector.fixed_rows import Candidates, FixedDetections, select
from cachedet.detector.layers import LayerStyle
from cachedet.detector.matching import (
    IGNORED,
    MatchRule,
    PaddedGroundTruth,
    match_boxes,
    pad_ground_truth,
)
from cachedet.detector.protocol import CostedPart
from cachedet.detector.towers import Tower, init_normal, per_anchor
from cachedet.distributed.collective import count_over_ranks
from cachedet.structures import Detections, Features, SizeHW, Targets

_PRIOR = 0.01  # probability of foreground the class logits start from (RetinaNet 4.1)


class RetinaNetHead(nn.Module):
    """Class and box towers whose convolutions all levels share, each level with its own norms."""

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        num_levels: int,
        num_anchors: int,
        num_classes: int,
        num_convs: int,
        style: LayerStyle,
        norm_per_level: bool,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_tower, self.box_tower = (
            Tower(
                in_channels=in_channels,
                channels=channels,
                num_levels=num_levels,
                num_convs=num_convs,
                style=style,
                norm_per_level=norm_per_level,
            )
            for _ in range(2)
        )
        width = self.class_tower.out_channels
        self.class_logits = nn.Conv2d(width, num_anchors * num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(width, num_anchors * 4, 3, padding=1)
        for predictor in (self.class_logits, self.box_deltas):
            init_normal(predictor, std=1e-5)  # PAPER 2.5
        nn.init.constant_(cast(Tensor, self.class_logits.bias), math.log(_PRIOR / (1 - _PRIOR)))

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        """P levels (N, C, h, w) -> class logits (N, T, K) and box deltas (N, T, 4)."""
        logits, deltas = [], []
        for index, level in enumerate(features.values()):
            class_maps = self.class_logits(self.class_tower(level, index))
            logits.append(per_anchor(class_maps, self.num_classes))
            deltas.append(per_anchor(self.box_deltas(self.box_tower(level, index)), 4))
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1)


class RetinaNet(nn.Module):
    """Neck, head and anchors: losses for training, detections for everything else."""

    normalizes_over_ranks = True

    def __init__(
        self,
        *,
        adapters: nn.Module,  # C levels -> C levels; nn.Identity for none
        neck: nn.Module,  # C levels -> P levels
        head: RetinaNetHead,
        anchors: AnchorGenerator,
        postprocess: Postprocess,
        match_rule: MatchRule,
        focal_alpha: float,
        focal_gamma: float,
        huber_delta: float,  # where the box loss turns from quadratic to linear
        box_weight: float,  # of the box loss, which is a mean over the 4 coordinates
    ) -> None:
        super().__init__()
        self.adapters = adapters
        self.neck = neck
        self.head = head
        self.anchors = anchors
        self.postprocess = postprocess
        self.match_rule = match_rule
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.huber_delta, self.box_weight = huber_delta, box_weight

    def parts(self) -> list[nn.Module]:
        """What is worth compiling: everything with parameters, without matching and losses."""
        return [self.adapters, self.neck, self.head]

    def classifiers(self) -> list[nn.Module]:
        """The last layer that names classes: all that a second stage may retrain (PAPER 1.7)."""
        return [self.head.class_logits]

    def costs(self, features: Features) -> list[CostedPart]:
        """For `cachedet model`."""
        parts, pyramid = neck_costs(self.adapters, self.neck, features)
        head = partial(self.head, pyramid)
        return [*parts, CostedPart(name="head", module=self.head, forward=head, step=head)]

    def forward(self, features: Features, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Losses {"class", "box"}, both divided by the positives of the batch + 1 (PAPER 2.2)."""
        pyramid = self.neck(self.adapters(features))
        logits, deltas = self.head(pyramid)
        return self.losses(
            logits, deltas, anchors=self.anchors(pyramid), ground_truth=pad_ground_truth(targets)
        )

    def losses(
        self, logits: Tensor, deltas: Tensor, *, anchors: Tensor, ground_truth: PaddedGroundTruth
    ) -> dict[str, Tensor]:
        """Of class logits (N, T, K) and box deltas (N, T, 4) of anchors (T, 4)."""
        matched = match_boxes(anchors, ground_truth, self.match_rule)
        image, index = (matched >= 0).nonzero(as_tuple=True)
        gt = image, matched[image, index]
        wanted_deltas = encode_deltas(ground_truth.boxes[gt], anchors[index])
        wanted_class = torch.zeros_like(logits)
        wanted_class[image, index, ground_truth.labels[gt]] = 1.0
        normaliser = count_over_ranks(len(index)) + 1
        return {
            "class": self._class_loss(logits, wanted_class, matched != IGNORED) / normaliser,
            "box": self._box_loss(deltas[image, index], wanted_deltas) / normaliser,
        }

    @torch.no_grad()
    def detect(
        self, features: Features, *, sizes_hw: Sequence[SizeHW], image_ids: Sequence[int]
    ) -> list[Detections]:
        """Detections of each image in pixels of its view, best first; see `Detector`."""
        pyramid = self.neck(self.adapters(features))
        logits, deltas = self.head(pyramid)
        scores = logits.float().sigmoid()
        boxes = apply_deltas(deltas.float(), self.anchors(pyramid))
        return [
            self.postprocess(scores[n], boxes[n], size_hw=sizes_hw[n], image_id=image_id)
            for n, image_id in enumerate(image_ids)
        ]

    @torch.no_grad()
    def candidates(self, features: Features, sizes_hw: Tensor) -> Candidates:
        """Scores and boxes of every anchor, for graphs; see `Detector`."""
        pyramid = self.neck(self.adapters(features))
        logits, deltas = self.head(pyramid)
        boxes = apply_deltas(deltas.float(), self.anchors.make(pyramid))
        return Candidates(boxes=clip_to_sizes(boxes, sizes_hw), scores=logits.float().sigmoid())

    def detect_rows(self, features: Features, sizes_hw: Tensor) -> FixedDetections:
        """`detect` for graphs; see `Detector`."""
        return select(self.postprocess, self.candidates(features, sizes_hw))

    def _class_loss(self, logits: Tensor, wanted: Tensor, teaches: Tensor) -> Tensor:
        """Sum of the focal loss (N, T, K) over the anchors (N, T) that teach."""
        loss: Tensor = sigmoid_focal_loss(
            logits, wanted, alpha=self.focal_alpha, gamma=self.focal_gamma
        )
        return (loss.sum(dim=-1) * teaches).sum()

    def _box_loss(self, deltas: Tensor, wanted: Tensor) -> Tensor:
        """Weighted sum over positives (P, 4) of the Huber loss, averaged over the 4 coordinates."""
        loss = F.huber_loss(deltas, wanted, delta=self.huber_delta, reduction="sum")
        return loss * self.box_weight / 4

"""RetinaNet (arXiv 1708.02002) on features, with the numbers of PAPER 2.2 and 2.5.

Letters: N pictures, K classes, A anchors per cell, T anchors of all levels, C channels, M gt boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, sigmoid_focal_loss

from cachedet.detector.anchors import IGNORED, AnchorGenerator, ignore_crowd, match_anchors
from cachedet.detector.boxes import apply_deltas, clip_boxes, encode_deltas
from cachedet.detector.norms import ACTIVATIONS, ActivationName, NormName, make_norm
from cachedet.structures import Detections, Features, SizeHW, Targets

_PRIOR = 0.01  # probability of foreground the class logits start from (RetinaNet 4.1)


class RetinaNetHead(nn.Module):
    """Class and box towers whose convolutions all levels share, each level with its own norms."""

    def __init__(
        self,
        *,
        channels: int,
        num_levels: int,
        num_anchors: int,
        num_classes: int,
        num_convs: int = 4,
        norm: NormName = "batch",
        activation: ActivationName = "relu",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_tower, self.box_tower = (
            _Tower(
                channels=channels,
                num_levels=num_levels,
                num_convs=num_convs,
                norm=norm,
                activation=activation,
            )
            for _ in range(2)
        )
        self.class_logits = nn.Conv2d(channels, num_anchors * num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(channels, num_anchors * 4, 3, padding=1)
        for predictor in (self.class_logits, self.box_deltas):
            _init_conv(predictor, std=1e-5)  # PAPER 2.5
        nn.init.constant_(cast(Tensor, self.class_logits.bias), math.log(_PRIOR / (1 - _PRIOR)))

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        """P levels (N, C, h, w) -> class logits (N, T, K) and box deltas (N, T, 4)."""
        logits, deltas = [], []
        for place, level in enumerate(features.values()):
            logits.append(
                _per_anchor(self.class_logits(self.class_tower(level, place)), self.num_classes)
            )
            deltas.append(_per_anchor(self.box_deltas(self.box_tower(level, place)), 4))
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1)


class _Tower(nn.Module):
    def __init__(
        self,
        *,
        channels: int,
        num_levels: int,
        num_convs: int,
        norm: NormName,
        activation: ActivationName,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none")
            for _ in range(num_convs)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(make_norm(norm, channels) for _ in range(num_convs))
            for _ in range(num_levels)
        )
        self.activation = ACTIVATIONS[activation]()
        for conv in self.convs:
            _init_conv(conv, std=0.01)  # PAPER 2.5

    def forward(self, level: Tensor, place: int) -> Tensor:
        """(N, C, h, w) of level number `place` -> the same shape."""
        norms = cast(nn.ModuleList, self.norms[place])
        for conv, norm in zip(self.convs, norms, strict=True):
            level = self.activation(norm(conv(level)))
        return level


class RetinaNet(nn.Module):
    """Neck, head and anchors: losses for training, detections for everything else.

    Args:
        neck: C levels -> P levels.
        head: P levels -> logits and deltas.
        anchors: for the P levels.
        foreground_iou, background_iou: see `match_anchors`.
        focal_alpha, focal_gamma: of the class loss.
        huber_delta: where the box loss turns from quadratic to linear.
        box_weight: of the box loss, which is a mean over the 4 coordinates.
        score_threshold, pre_nms, nms_iou, max_detections: of `detect`.
    """

    def __init__(
        self,
        *,
        neck: nn.Module,
        head: RetinaNetHead,
        anchors: AnchorGenerator,
        foreground_iou: float = 0.5,
        background_iou: float = 0.5,
        focal_alpha: float = 0.25,
        focal_gamma: float = 1.5,
        huber_delta: float = 0.1,
        box_weight: float = 50.0,
        score_threshold: float = 0.05,
        pre_nms: int = 5000,
        nms_iou: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.neck = neck
        self.head = head
        self.anchors = anchors
        self.foreground_iou, self.background_iou = foreground_iou, background_iou
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.huber_delta, self.box_weight = huber_delta, box_weight
        self.score_threshold, self.pre_nms = score_threshold, pre_nms
        self.nms_iou, self.max_detections = nms_iou, max_detections

    def forward(self, features: Features, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Losses {"class", "box"}, both divided by the positives of the batch + 1 (PAPER 2.2)."""
        pyramid = self.neck(features)
        logits, deltas = self.head(pyramid)
        anchors = self.anchors(pyramid)
        matched = torch.stack([self._match(anchors, of_picture) for of_picture in targets])
        normaliser = (matched >= 0).sum() + 1
        return {
            "class": self._class_loss(logits, matched, targets) / normaliser,
            "box": self._box_loss(deltas, anchors, matched, targets) / normaliser,
        }

    @torch.no_grad()
    def detect(
        self, features: Features, *, sizes_hw: Sequence[SizeHW], image_ids: Sequence[int]
    ) -> list[Detections]:
        """Detections of each picture in pixels of its view, best first.

        Args:
            features: C levels (N, C, h, w).
            sizes_hw: valid pixels of each view; boxes are clipped to them.
            image_ids: of the pictures.
        """
        pyramid = self.neck(features)
        logits, deltas = self.head(pyramid)
        anchors = self.anchors(pyramid)
        return [
            self._detect_one(logits[n].float(), deltas[n].float(), anchors, sizes_hw[n], image_id)
            for n, image_id in enumerate(image_ids)
        ]

    @torch.no_grad()
    def _match(self, anchors: Tensor, targets: Targets) -> Tensor:
        """(T,) index into the picture's boxes that are no crowd, BACKGROUND or IGNORED."""
        matched = match_anchors(
            anchors,
            targets.boxes[~targets.crowd],
            foreground_iou=self.foreground_iou,
            background_iou=self.background_iou,
        )
        return ignore_crowd(matched, anchors, targets.boxes[targets.crowd])

    def _class_loss(self, logits: Tensor, matched: Tensor, targets: Sequence[Targets]) -> Tensor:
        """Sum of the focal loss over anchors that are not ignored."""
        wanted = torch.zeros_like(logits)
        for n, of_picture in enumerate(targets):
            positive = (matched[n] >= 0).nonzero().squeeze(1)
            labels = of_picture.labels[~of_picture.crowd][matched[n, positive]]
            wanted[n, positive, labels] = 1.0
        loss: Tensor = sigmoid_focal_loss(
            logits, wanted, alpha=self.focal_alpha, gamma=self.focal_gamma
        )
        return (loss.sum(dim=-1) * (matched != IGNORED)).sum()

    def _box_loss(
        self, deltas: Tensor, anchors: Tensor, matched: Tensor, targets: Sequence[Targets]
    ) -> Tensor:
        """Weighted sum over positives of the Huber loss, averaged over the 4 coordinates."""
        predicted, wanted = [], []
        for n, of_picture in enumerate(targets):
            positive = matched[n] >= 0
            boxes = of_picture.boxes[~of_picture.crowd][matched[n, positive]]
            predicted.append(deltas[n, positive])
            wanted.append(encode_deltas(boxes, anchors[positive]))
        loss = F.huber_loss(
            torch.cat(predicted), torch.cat(wanted), delta=self.huber_delta, reduction="sum"
        )
        return loss * self.box_weight / 4

    def _detect_one(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, size_hw: SizeHW, image_id: int
    ) -> Detections:
        """(T, K) logits and (T, 4) deltas of one picture."""
        scores = logits.sigmoid().flatten()
        candidates = (scores > self.score_threshold).nonzero().squeeze(1)
        best = scores[candidates].topk(min(self.pre_nms, len(candidates))).indices
        candidates = candidates[best]
        labels = candidates % self.head.num_classes
        places = candidates // self.head.num_classes
        boxes = clip_boxes(apply_deltas(deltas[places], anchors[places]), size_hw)
        solid = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
        boxes, labels, scores = boxes[solid], labels[solid], scores[candidates][solid]
        kept = batched_nms(boxes, scores, labels, self.nms_iou)[: self.max_detections]
        return Detections(
            image_id=image_id, boxes=boxes[kept], scores=scores[kept], labels=labels[kept]
        )


def _init_conv(conv: nn.Module, *, std: float) -> None:
    for name, parameter in conv.named_parameters():
        if name == "weight":
            nn.init.normal_(parameter, std=std)
        else:
            nn.init.zeros_(parameter)


def _per_anchor(maps: Tensor, values: int) -> Tensor:
    """(N, A * values, h, w) -> (N, h * w * A, values)."""
    n, _, height, width = maps.shape
    maps = maps.view(n, -1, values, height, width).permute(0, 3, 4, 1, 2)
    return maps.reshape(n, -1, values)

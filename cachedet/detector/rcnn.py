"""Faster R-CNN (arXiv 1506.01497) and Cascade R-CNN (arXiv 1712.00726) on features, PAPER 2.2, 2.6.

Both are one module: Faster R-CNN is a cascade of a single stage.
Letters: N pictures, S sampled RoIs of a picture, R RoIs of all pictures, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cachedet.detector.boxes import apply_deltas, clip_to_sizes, encode_deltas
from cachedet.detector.matching import (
    BACKGROUND,
    IGNORED,
    PaddedTruth,
    match_boxes,
    pad_truth,
    sample_boxes,
)
from cachedet.detector.roi_align import PyramidRoIAlign
from cachedet.detector.roi_head import RoIHead, own_deltas
from cachedet.detector.rpn import RPN, Proposals
from cachedet.detector.selection import Selection
from cachedet.structures import Detections, Features, SizeHW, Targets


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage of the cascade takes as an object, and how finely it moves boxes."""

    foreground_iou: float
    delta_weights: tuple[float, float, float, float]  # deltas are learnt times these


@dataclass(frozen=True, kw_only=True, eq=False)
class RoIs:
    """The RoIs of a step in rectangular tensors, and what each shall learn."""

    boxes: Tensor  # (N, S, 4)
    is_valid: Tensor  # (N, S)
    matched: Tensor  # (N, S) gt box, BACKGROUND or IGNORED


class RCNN(nn.Module):
    """Neck, RPN and one RoI head a stage.

    Stage 1 samples RoIs from the proposals and the truth; later stages take the boxes the stage
    before has moved, label them at their own IoU, and sample nothing anew. Losses of the stages
    are averaged; at inference so are their logits, and the boxes are the last stage's (PAPER 2.6).

    Args:
        adapters: C levels -> C levels; nn.Identity for none.
        neck: C levels -> P levels.
        rpn: proposes boxes.
        roi_align: pools RoIs from P levels.
        heads: one a stage; more than one need class-agnostic boxes.
        stages: as many.
        selection: of the detections.
        samples: RoIs of a picture that teach in a step.
        positive_fraction: largest share of positives among them.
        huber_delta: of the box loss.
    """

    loss_names = ("rpn_class", "rpn_box", "class", "box")

    def __init__(
        self,
        *,
        adapters: nn.Module,
        neck: nn.Module,
        rpn: RPN,
        roi_align: PyramidRoIAlign,
        heads: Sequence[RoIHead],
        stages: Sequence[Stage],
        selection: Selection,
        samples: int = 512,
        positive_fraction: float = 0.25,
        huber_delta: float = 1.0,
    ) -> None:
        super().__init__()
        if len(heads) != len(stages):
            raise ValueError(f"expected one head a stage, got {len(heads)} for {len(stages)}")
        if len(heads) > 1 and any(head.boxes_per_roi > 1 for head in heads):
            raise ValueError("several stages need class-agnostic heads: each moves a RoI's one box")
        self.adapters = adapters
        self.neck = neck
        self.rpn = rpn
        self.roi_align = roi_align
        self.heads = nn.ModuleList(heads)
        self.stages = tuple(stages)
        self.selection = selection
        self.samples, self.positive_fraction = samples, positive_fraction
        self.huber_delta = huber_delta

    def parts(self) -> list[nn.Module]:
        """What is worth compiling: everything with parameters, without matching and losses."""
        return [self.adapters, self.neck, self.rpn.head, *self.heads]

    def forward(self, features: Features, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Losses {"rpn_class", "rpn_box", "class", "box"}; the last two are means of the stages."""
        pyramid = self.neck(self.adapters(features))
        truth = pad_truth(targets)
        sizes_hw = [of_picture.size_hw for of_picture in targets]
        output = self.rpn(pyramid)
        losses = self.rpn.losses(output, pyramid, truth)
        rois = self._sample(self.rpn.propose(output, pyramid, sizes_hw=sizes_hw), truth)
        class_losses, box_losses = [], []
        for place, stage in enumerate(self.stages):
            if place > 0:
                rois = self._label(rois.boxes, rois.is_valid, truth, stage)
            logits, deltas = self._head(pyramid, rois.boxes, rois.is_valid, place)
            class_losses.append(self._class_loss(logits, rois, truth))
            box_losses.append(self._box_loss(deltas, rois, truth, stage))
            moved = self._move(rois.boxes, rois.is_valid, deltas.detach(), stage, sizes_hw)
            rois = RoIs(boxes=moved, is_valid=rois.is_valid, matched=rois.matched)
        losses["class"] = torch.stack(class_losses).mean()
        losses["box"] = torch.stack(box_losses).mean()
        return losses

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
        pyramid = self.neck(self.adapters(features))
        proposals = self.rpn.propose(self.rpn(pyramid), pyramid, sizes_hw=sizes_hw)
        boxes, is_valid = proposals.boxes, proposals.is_valid
        logits_of_stages = []
        for place, stage in enumerate(self.stages):
            logits, deltas = self._head(pyramid, boxes, is_valid, place)
            logits_of_stages.append(logits.float())
            if place + 1 < len(self.stages):
                boxes = self._move(boxes, is_valid, deltas, stage, sizes_hw)
        scores = torch.stack(logits_of_stages).mean(dim=0).softmax(dim=-1)[:, :-1]
        weights = deltas.new_tensor(self.stages[-1].delta_weights)
        found = apply_deltas((deltas / weights).float(), boxes[is_valid][:, None])
        counts = is_valid.sum(dim=1).tolist()
        num_boxes = found.shape[1]
        return [
            self.selection(
                own_scores,
                own_boxes if num_boxes > 1 else own_boxes[:, 0],
                size_hw=size_hw,
                image_id=image_id,
            )
            for own_scores, own_boxes, size_hw, image_id in zip(
                torch.split(scores, counts),
                torch.split(found, counts),
                sizes_hw,
                image_ids,
                strict=True,
            )
        ]

    def _head(
        self, pyramid: Features, boxes: Tensor, is_valid: Tensor, place: int
    ) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and deltas (R, 1 or K, 4) of the R valid boxes, picture by picture."""
        picture = is_valid.nonzero()[:, 0]
        cells = self.roi_align(pyramid, boxes[is_valid], picture)
        logits, deltas = self.heads[place](cells)
        return logits, deltas

    @torch.no_grad()
    def _sample(self, proposals: Proposals, truth: PaddedTruth) -> RoIs:
        """RoIs of the first stage: proposals and the truth itself, labelled and sampled."""
        boxes = torch.cat([proposals.boxes, truth.boxes.to(proposals.boxes.dtype)], dim=1)
        is_valid = torch.cat([proposals.is_valid, truth.usable], dim=1)
        labelled = self._label(boxes, is_valid, truth, self.stages[0])
        sample = sample_boxes(
            labelled.matched, size=self.samples, positive_fraction=self.positive_fraction
        )
        return RoIs(
            boxes=boxes.gather(1, sample.idx[..., None].expand(-1, -1, 4)),
            is_valid=sample.is_valid,
            matched=labelled.matched.gather(1, sample.idx),
        )

    @torch.no_grad()
    def _label(self, boxes: Tensor, is_valid: Tensor, truth: PaddedTruth, stage: Stage) -> RoIs:
        """What each box shall learn at the stage's IoU; places that are not valid are IGNORED."""
        matched = match_boxes(
            boxes,
            truth,
            foreground_iou=stage.foreground_iou,
            background_iou=stage.foreground_iou,
            force_best=False,
        )
        return RoIs(boxes=boxes, is_valid=is_valid, matched=torch.where(is_valid, matched, IGNORED))

    @torch.no_grad()
    def _move(
        self,
        boxes: Tensor,
        is_valid: Tensor,
        deltas: Tensor,
        stage: Stage,
        sizes_hw: Sequence[SizeHW],
    ) -> Tensor:
        """(N, S, 4) boxes moved by the (R, 1, 4) deltas of the valid ones and clipped."""
        if deltas.shape[1] > 1:  # the only stage: nobody takes its boxes
            return boxes
        scaled = (deltas[:, 0] / deltas.new_tensor(stage.delta_weights)).to(boxes.dtype)
        moved = boxes.clone()
        moved[is_valid] = apply_deltas(scaled, boxes[is_valid])
        return clip_to_sizes(moved, sizes_hw)

    def _class_loss(self, logits: Tensor, rois: RoIs, truth: PaddedTruth) -> Tensor:
        """Mean cross-entropy over the RoIs that are not ignored; (R, K + 1) logits."""
        background = logits.shape[1] - 1
        labels = torch.where(rois.matched == BACKGROUND, background, truth.labels_of(rois.matched))
        labels = torch.where(rois.matched == IGNORED, IGNORED, labels)[rois.is_valid]
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return loss / (labels != IGNORED).sum().clamp(min=1)

    def _box_loss(self, deltas: Tensor, rois: RoIs, truth: PaddedTruth, stage: Stage) -> Tensor:
        """Mean Huber loss over the coordinates of positive RoIs; (R, 1 or K, 4) deltas."""
        matched = rois.matched[rois.is_valid]
        positive = matched >= 0
        labels = truth.labels_of(rois.matched)[rois.is_valid]
        gt_boxes = truth.boxes_of(rois.matched)[rois.is_valid][positive]
        wanted = encode_deltas(gt_boxes, rois.boxes[rois.is_valid][positive])
        wanted = wanted * wanted.new_tensor(stage.delta_weights)
        predicted = own_deltas(deltas, labels)[positive]
        loss = F.huber_loss(predicted, wanted, delta=self.huber_delta, reduction="sum")
        return loss / max(wanted.numel(), 1)


def paper_stages(foreground_ious: Sequence[float]) -> tuple[Stage, ...]:
    """One stage for each IoU; stage n learns deltas times n + 1 times (10, 10, 5, 5) (PAPER 2.6)"""
    return tuple(
        Stage(
            foreground_iou=iou,
            delta_weights=(10.0 * n, 10.0 * n, 5.0 * n, 5.0 * n),
        )
        for n, iou in enumerate(foreground_ious, start=1)
    )

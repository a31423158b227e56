"""Faster R-CNN (arXiv 1506.01497) and Cascade R-CNN (arXiv 1712.00726) on features, PAPER 2.2, 2.6.

Both are one module: Faster R-CNN is a cascade of a single stage.
Letters: N images, R RoIs of all images, M gt boxes of an image, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cachedet.detector.boxes import (
    Postprocess,
    Sizes,
    apply_deltas,
    clip_to_images,
    clip_to_sizes,
    encode_deltas,
)
from cachedet.detector.costs import neck_costs, roi_head_cost
from cachedet.detector.fixed_rows import Candidates, FixedDetections, image_of_rows, select
from cachedet.detector.mask_head import MaskBranch
from cachedet.detector.matching import (
    BACKGROUND,
    IGNORED,
    MatchRule,
    PaddedGroundTruth,
    match_boxes,
    pad_ground_truth,
    sample_boxes,
)
from cachedet.detector.protocol import CostedPart
from cachedet.detector.roi_align import PyramidRoIAlign
from cachedet.detector.roi_head import RoIHead, class_deltas
from cachedet.detector.rpn import RPN, Proposals
from cachedet.distributed.collective import count_over_ranks, sum_over_ranks
from cachedet.structures import Detections, Features, SizeHW, Targets


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage of the cascade takes as an object, and how finely it moves boxes."""

    foreground_iou: float
    delta_weights: tuple[float, float, float, float]  # deltas are learnt times these

    @property
    def match_rule(self) -> MatchRule:
        iou = self.foreground_iou
        return MatchRule(foreground_iou=iou, background_iou=iou, allow_low_quality="none")


@dataclass(frozen=True, kw_only=True, eq=False)
class RoIs:
    """The R RoIs of a step, image by image, and what each shall learn."""

    boxes: Tensor  # (R, 4)
    image: Tensor  # (R,) which of the N images it lies in
    matched: Tensor  # (R,) gt box of that image, BACKGROUND or IGNORED
    gt_boxes: Tensor  # (R, 4) the matched ones; meaningless where nothing matched
    gt_labels: Tensor  # (R,) likewise

    @property
    def is_positive(self) -> Tensor:
        return self.matched >= 0


class RCNN(nn.Module):
    """Neck, RPN and one RoI head a stage.

    Stage 1 samples RoIs from the proposals and the gt boxes; later stages take the boxes the stage
    before has moved, label them at their own IoU, and sample nothing anew. Losses of the stages
    are averaged; at inference so are their logits, and the boxes are the last stage's (PAPER 2.6).
    Masks are learnt from the positives of the first stage and predicted in the last one's boxes.
    """

    normalizes_over_ranks = True

    def __init__(
        self,
        *,
        adapters: nn.Module,  # C levels -> C levels; nn.Identity for none
        neck: nn.Module,  # C levels -> P levels
        rpn: RPN,
        roi_align: PyramidRoIAlign,
        heads: Sequence[RoIHead],  # one a stage; more than one need class-agnostic boxes
        stages: Sequence[Stage],
        postprocess: Postprocess,
        samples: int,  # RoIs of an image that teach in a step
        positive_fraction: float,  # the largest among them
        huber_delta: float,  # where the box loss turns from quadratic to linear
        box_weight: float,  # of the box loss, which is a mean over coordinates
        mask_branch: MaskBranch | None,
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
        self.postprocess = postprocess
        self.samples, self.positive_fraction = samples, positive_fraction
        self.huber_delta, self.box_weight = huber_delta, box_weight
        self.mask_branch = mask_branch

    @property
    def trains_masks(self) -> bool:
        return self.mask_branch is not None

    @property
    def max_proposals(self) -> int:
        """Most proposals of an image at inference."""
        return self.rpn.test_counts.post_nms

    def parts(self) -> list[nn.Module]:
        """What is worth compiling: everything with parameters, without matching and losses."""
        masks = [] if self.mask_branch is None else [self.mask_branch.head]
        return [self.adapters, self.neck, self.rpn.head, *self.heads, *masks]

    def classifiers(self) -> list[nn.Module]:
        """The last layers that name classes, one a stage (PAPER 1.7)."""
        return [cast(RoIHead, head).class_logits for head in self.heads]

    def costs(self, features: Features) -> list[CostedPart]:
        """For `cachedet model`."""
        parts, pyramid = neck_costs(self.adapters, self.neck, features)
        rpn = partial(_rpn_outputs, self.rpn, pyramid)
        parts.append(CostedPart(name="rpn", module=self.rpn, forward=rpn, step=rpn))
        channels = next(iter(pyramid.values())).shape[1]
        parts += [
            roi_head_cost(
                f"roi head {number}",
                head,
                sampled=self.samples,
                proposed=self.max_proposals,
                channels=channels,
                side=self.roi_align.resolution,
            )
            for number, head in enumerate(self.heads, start=1)
        ]
        if self.mask_branch is not None:
            mask_head = roi_head_cost(
                "mask head",
                self.mask_branch.head,
                sampled=int(self.samples * self.positive_fraction),
                proposed=self.postprocess.max_detections,
                channels=channels,
                side=self.mask_branch.roi_align.resolution,
            )
            parts.append(mask_head)
        return parts

    def forward(self, features: Features, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Losses "rpn_class", "rpn_box", "class", "box" (means of the stages), and "mask"."""
        pyramid = self.neck(self.adapters(features))
        ground_truth = pad_ground_truth(targets)
        sizes_hw = [of_image.size_hw for of_image in targets]
        output = self.rpn(pyramid)
        losses = self.rpn.losses(output, pyramid, ground_truth)
        rois = self._sample(self.rpn.propose(output, pyramid, sizes_hw=sizes_hw), ground_truth)
        sampled, pool = rois, self.roi_align.over(pyramid)
        class_losses, box_losses = [], []
        for number, (stage, head) in enumerate(zip(self.stages, self.heads, strict=True)):
            logits, deltas = head(pool(rois.boxes, rois.image))
            class_losses.append(self._class_loss(logits, rois))
            box_losses.append(self._box_loss(deltas, rois, stage))
            if number + 1 < len(self.stages):
                moved = move_boxes(rois.boxes, deltas.detach()[:, 0], stage)
                moved = clip_to_images(moved, sizes_hw, rois.image)
                rois = self._label(moved, rois.image, ground_truth, self.stages[number + 1])
        losses["class"] = torch.stack(class_losses).mean()
        losses["box"] = torch.stack(box_losses).mean()
        if self.mask_branch is not None:
            positive = sampled.is_positive.nonzero()[:, 0]
            losses["mask"] = self.mask_branch.loss(
                pyramid,
                targets,
                boxes=sampled.boxes[positive],
                image=sampled.image[positive],
                matched=sampled.matched[positive],
            )
        return losses

    @torch.no_grad()
    def detect(
        self, features: Features, *, sizes_hw: Sequence[SizeHW], image_ids: Sequence[int]
    ) -> list[Detections]:
        """Detections of each image in pixels of its view, best first; see `Detector`."""
        pyramid = self.neck(self.adapters(features))
        proposals = self.rpn.propose(self.rpn(pyramid), pyramid, sizes_hw=sizes_hw)
        image, slot = proposals.is_valid.nonzero(as_tuple=True)
        boxes = proposals.boxes[image, slot]
        scores, moved = self._classify(pyramid, boxes, image, sizes_hw)
        counts = proposals.is_valid.sum(dim=1).tolist()
        detections = [
            self.postprocess(image_scores, image_boxes, size_hw=size_hw, image_id=image_id)
            for image_scores, image_boxes, size_hw, image_id in zip(
                torch.split(scores, counts),
                torch.split(moved, counts),
                sizes_hw,
                image_ids,
                strict=True,
            )
        ]
        if self.mask_branch is None:
            return detections
        return self.mask_branch.predict(pyramid, detections)

    @torch.no_grad()
    def candidates(self, features: Features, sizes_hw: Tensor) -> Candidates:
        """Scores and boxes of every proposal, for graphs; see `Detector`."""
        return self._candidates(self.neck(self.adapters(features)), sizes_hw)

    @torch.no_grad()
    def detect_rows(self, features: Features, sizes_hw: Tensor) -> FixedDetections:
        """`detect` for graphs; see `Detector`."""
        pyramid = self.neck(self.adapters(features))
        found = select(self.postprocess, self._candidates(pyramid, sizes_hw))
        if self.mask_branch is None:
            return found
        masks = self.mask_branch.of_boxes(
            pyramid, found.boxes.flatten(0, 1), image_of_rows(found.boxes), found.labels.flatten()
        )
        return replace(found, masks=masks.view(*found.labels.shape, *masks.shape[1:]))

    @torch.no_grad()
    def propose(
        self, features: Features, *, sizes_hw: Sequence[SizeHW], image_ids: Sequence[int]
    ) -> list[Detections]:
        """The RPN's proposals as detections of class 0, by objectness in [0, 1], best first.

        Arguments as `detect`; boxes are in pixels of the views.
        """
        pyramid = self.neck(self.adapters(features))
        proposals = self.rpn.propose(self.rpn(pyramid), pyramid, sizes_hw=sizes_hw)
        detections = []
        for n, image_id in enumerate(image_ids):
            is_valid = proposals.is_valid[n]
            scores = proposals.scores[n, is_valid].sigmoid()
            labels = torch.zeros_like(scores, dtype=torch.int64)
            boxes = proposals.boxes[n, is_valid]
            detections.append(
                Detections(image_id=image_id, boxes=boxes, scores=scores, labels=labels)
            )
        return detections

    def _candidates(self, pyramid: Features, sizes_hw: Tensor) -> Candidates:
        proposals = self.rpn.propose_rows(self.rpn(pyramid), pyramid, sizes_hw)
        image = image_of_rows(proposals.boxes)
        scores, boxes = self._classify(pyramid, proposals.boxes.flatten(0, 1), image, sizes_hw)
        rows = proposals.is_valid.shape
        boxes = boxes.view(*rows, *boxes.shape[1:])
        return Candidates(
            boxes=clip_to_sizes(boxes.flatten(1, -2), sizes_hw).view_as(boxes),
            scores=scores.view(*rows, scores.shape[1]) * proposals.is_valid[..., None],
        )

    def _classify(
        self, pyramid: Features, boxes: Tensor, image: Tensor, sizes_hw: Sizes
    ) -> tuple[Tensor, Tensor]:
        """Scores (R, K) of RoIs (R, 4), each of the image (R,), and where stages move them.

        Boxes are (R, 4), or (R, K, 4) where every class has its own; the last are not clipped.
        """
        pool, logits_of_stages = self.roi_align.over(pyramid), []
        for number, (stage, head) in enumerate(zip(self.stages, self.heads, strict=True)):
            logits, deltas = head(pool(boxes, image))
            logits_of_stages.append(logits.float())
            if number + 1 < len(self.stages):
                boxes = clip_to_images(move_boxes(boxes, deltas[:, 0], stage), sizes_hw, image)
        scores = torch.stack(logits_of_stages).mean(dim=0).softmax(dim=-1)[:, :-1]
        moved = move_boxes(boxes[:, None], deltas.float(), self.stages[-1])
        return scores, moved[:, 0] if moved.shape[1] == 1 else moved

    @torch.no_grad()
    def _sample(self, proposals: Proposals, ground_truth: PaddedGroundTruth) -> RoIs:
        """RoIs of the first stage: proposals and the ground truth itself, labelled and sampled."""
        boxes = torch.cat([proposals.boxes, ground_truth.boxes.to(proposals.boxes.dtype)], dim=1)
        is_valid = torch.cat([proposals.is_valid, ground_truth.usable], dim=1)
        matched = match_boxes(boxes, ground_truth, self.stages[0].match_rule)
        sample = sample_boxes(
            torch.where(is_valid, matched, IGNORED),
            size=self.samples,
            positive_fraction=self.positive_fraction,
        )
        image, slot = sample.is_valid.nonzero(as_tuple=True)
        taken = sample.idx[image, slot]
        return _make_rois(boxes[image, taken], image, matched[image, taken], ground_truth)

    @torch.no_grad()
    def _label(
        self, boxes: Tensor, image: Tensor, ground_truth: PaddedGroundTruth, stage: Stage
    ) -> RoIs:
        """What boxes (R, 4), wherever they have been moved, shall learn at the stage's IoU."""
        matched = match_boxes(boxes[:, None], ground_truth.of_rois(image), stage.match_rule)
        return _make_rois(boxes, image, matched[:, 0], ground_truth)

    def _class_loss(self, logits: Tensor, rois: RoIs) -> Tensor:
        """Mean cross-entropy over the RoIs that are not ignored; (R, K + 1) logits."""
        background = logits.shape[1] - 1
        labels = torch.where(rois.matched == BACKGROUND, background, rois.gt_labels)
        labels = torch.where(rois.matched == IGNORED, IGNORED, labels)
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return loss / sum_over_ranks((labels != IGNORED).sum()).clamp(min=1)

    def _box_loss(self, deltas: Tensor, rois: RoIs, stage: Stage) -> Tensor:
        """Weighted mean Huber loss over the coordinates of positives; (R, 1 or K, 4) deltas."""
        positive = rois.is_positive.nonzero()[:, 0]
        wanted = encode_deltas(rois.gt_boxes[positive], rois.boxes[positive])
        wanted = wanted * wanted.new_tensor(stage.delta_weights)
        predicted = class_deltas(deltas[positive], rois.gt_labels[positive])
        loss = F.huber_loss(predicted, wanted, delta=self.huber_delta, reduction="sum")
        return loss * (self.box_weight / max(count_over_ranks(wanted.numel()), 1))


def _make_rois(
    boxes: Tensor, image: Tensor, matched: Tensor, ground_truth: PaddedGroundTruth
) -> RoIs:
    known = matched.clamp(min=0)
    return RoIs(
        boxes=boxes,
        image=image,
        matched=matched,
        gt_boxes=ground_truth.boxes[image, known],
        gt_labels=ground_truth.labels[image, known],
    )


def move_boxes(boxes: Tensor, deltas: Tensor, stage: Stage) -> Tensor:
    """(..., 4) boxes moved by deltas that were learnt times the stage's weights."""
    return apply_deltas(deltas.to(boxes.dtype) / boxes.new_tensor(stage.delta_weights), boxes)


def paper_stages(foreground_ious: Sequence[float]) -> tuple[Stage, ...]:
    """One stage for each IoU; stage n learns deltas times n x (10, 10, 5, 5) (PAPER 2.6)."""
    return tuple(
        Stage(foreground_iou=iou, delta_weights=(10.0 * n, 10.0 * n, 5.0 * n, 5.0 * n))
        for n, iou in enumerate(foreground_ious, start=1)
    )


def _rpn_outputs(rpn: RPN, pyramid: Features) -> list[Tensor]:
    output = rpn(pyramid)
    return [*output.logits, *output.deltas]

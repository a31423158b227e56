"""From scored boxes to detections: threshold, the best, non-maximum suppression per class.

Letters: T boxes, K classes, D detections.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torchvision.ops import batched_nms

from cachedet.detector.boxes import clip_boxes
from cachedet.structures import Detections, SizeHW


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How candidates become detections (PAPER 2.2).

    Attributes:
        score_threshold: candidates at or below it are dropped.
        pre_nms: most candidates, over all classes, that go into the suppression.
        nms_iou: of two boxes of a class that overlap more, the weaker is dropped.
        max_detections: of a picture.
    """

    score_threshold: float = 0.05
    pre_nms: int = 5000
    nms_iou: float = 0.5
    max_detections: int = 100

    def __call__(
        self, scores: Tensor, boxes: Tensor, *, size_hw: SizeHW, image_id: int
    ) -> Detections:
        """Detections of one picture, best first, clipped to `size_hw`.

        Args:
            scores: (T, K).
            boxes: (T, 4), or (T, K, 4) where every class has its own.
            size_hw: valid pixels of the view.
            image_id: of the picture.
        """
        num_classes = scores.shape[1]
        flat = scores.flatten()
        candidates = (flat > self.score_threshold).nonzero().squeeze(1)
        best = flat[candidates].topk(min(self.pre_nms, len(candidates))).indices
        candidates = candidates[best]
        labels = candidates % num_classes
        own = (
            boxes.flatten(0, 1)[candidates] if boxes.ndim == 3 else boxes[candidates // num_classes]
        )
        own = clip_boxes(own, size_hw)
        solid = ((own[:, 2:] - own[:, :2]) > 0).all(dim=1)
        own, labels, flat = own[solid], labels[solid], flat[candidates][solid]
        kept: Tensor = batched_nms(own, flat, labels, self.nms_iou)[: self.max_detections]
        return Detections(
            image_id=image_id, boxes=own[kept], scores=flat[kept], labels=labels[kept]
        )

"""One list of detections from those of several views of an image (test-time views).

Letters: D detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torchvision.ops import nms

from cachedet.config.detector import PostprocessConfig
from cachedet.structures import Detections


@dataclass(frozen=True, kw_only=True)
class Merging:
    """How detections of several views, all in pixels of the image, become one list."""

    nms_iou: float = PostprocessConfig().nms_iou  # of boxes that overlap more one is dropped
    max_detections: int = PostprocessConfig().max_detections  # of an image

    @classmethod
    def like(cls, postprocess: PostprocessConfig) -> Merging:
        """Merge with the numbers by which the detector selects within one view."""
        return cls(nms_iou=postprocess.nms_iou, max_detections=postprocess.max_detections)

    def __call__(self, by_view: Sequence[Detections]) -> Detections:
        """One image's detections by non-maximum suppression within each class, best first.

        Of equal scores the earlier view wins. Detections of a single view come back as they are.
        """
        if len(by_view) == 1:
            return by_view[0]
        boxes, scores, labels = (
            torch.cat([getattr(of_view, name) for of_view in by_view])
            for name in ("boxes", "scores", "labels")
        )
        stays = torch.zeros(len(labels), dtype=torch.bool)
        for label in torch.unique(labels):
            of_class = (labels == label).nonzero()[:, 0]
            stays[of_class[nms(boxes[of_class], scores[of_class], self.nms_iou)]] = True
        idx = stays.nonzero()[:, 0]
        order = scores[idx].argsort(descending=True, stable=True)
        kept = idx[order][: self.max_detections]
        masks = [of_view.masks for of_view in by_view if of_view.masks is not None]
        return replace(
            by_view[0],
            boxes=boxes[kept],
            scores=scores[kept],
            labels=labels[kept],
            masks=torch.cat(masks)[kept] if masks else None,
        )

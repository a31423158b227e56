"""One list of detections from those of several views of an image (test-time views).

Letters: D detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.ops import nms

from cachedet.config.detector import PostprocessConfig
from cachedet.data.geometry import Geometry
from cachedet.structures import Detections

_CUT_MARGIN = 0.01  # of the window's long side; a detector finds an edge no better than this
_PART_MARGIN = 0.1  # nearer to a cut than this a detection may be part of an object
_COVERED = 0.7  # share of such a part that a whole detection must cover to take its place,
_RIVAL_SCORE = 0.5  # and the least of its score over that of the part
_PAIRS = 1 << 20  # of parts and wholes compared at once: hundreds of windows find 10,000s


@dataclass(frozen=True, kw_only=True, eq=False)
class ViewDetections:
    """What one view found, in pixels of the image."""

    detections: Detections
    partial: Tensor  # (D,) bool: what may be a part of an object that the window cuts

    @classmethod
    def of(cls, found: Detections, geometry: Geometry) -> ViewDetections:
        """Detections in pixels of the view, without those that end where its window cuts.

        Part of an object overlaps the whole one too little for suppression to remove it. Where the
        window ends with the image nothing is dropped.
        """
        partial = torch.zeros(len(found), dtype=torch.bool)
        if geometry.is_window:
            side = max(geometry.valid_hw)
            found = found.keep(~geometry.cut_by_window(found.boxes, margin=_CUT_MARGIN * side))
            partial = geometry.cut_by_window(found.boxes, margin=_PART_MARGIN * side).cpu()
        return cls(detections=geometry.detections_to_image(found), partial=partial)

    @classmethod
    def whole(cls, found: Detections, geometry: Geometry) -> ViewDetections:
        """All of them, where a window cuts nothing, as proposals."""
        partial = torch.zeros(len(found), dtype=torch.bool)
        return cls(detections=geometry.detections_to_image(found), partial=partial)


@dataclass(frozen=True, kw_only=True)
class Merging:
    """How detections of several views, all in pixels of the image, become one list."""

    nms_iou: float = PostprocessConfig().nms_iou  # of boxes that overlap more one is dropped
    max_detections: int = PostprocessConfig().max_detections  # of an image

    @classmethod
    def like(cls, postprocess: PostprocessConfig) -> Merging:
        """Merge with the numbers by which the detector selects within one view."""
        return cls(nms_iou=postprocess.nms_iou, max_detections=postprocess.max_detections)

    def __call__(self, by_view: Sequence[ViewDetections]) -> Detections:
        """One image's detections by non-maximum suppression within each class, best first.

        Parts of which another detection of the class has the whole go first. Of equal scores the
        earlier view wins. Detections of a single view come back as they are.
        """
        found = [of_view.detections for of_view in by_view]
        if len(found) == 1:
            return found[0]
        boxes, scores, labels = (
            torch.cat([getattr(of_view, name) for of_view in found])
            for name in ("boxes", "scores", "labels")
        )
        partial = torch.cat([of_view.partial for of_view in by_view])
        stays = torch.zeros(len(labels), dtype=torch.bool)
        for label in torch.unique(labels):
            of_class = (labels == label).nonzero()[:, 0]
            of_class = of_class[~_are_covered(boxes[of_class], scores[of_class], partial[of_class])]
            stays[of_class[nms(boxes[of_class], scores[of_class], self.nms_iou)]] = True
        idx = stays.nonzero()[:, 0]
        order = scores[idx].argsort(descending=True, stable=True)
        kept = idx[order][: self.max_detections]
        masks = [of_view.masks for of_view in found if of_view.masks is not None]
        return replace(
            found[0],
            boxes=boxes[kept],
            scores=scores[kept],
            labels=labels[kept],
            masks=torch.cat(masks)[kept] if masks else None,
        )


def _are_covered(boxes: Tensor, scores: Tensor, partial: Tensor) -> Tensor:
    """(D,) bool: which boxes of one class are parts of others that are whole and about as sure."""
    covered = torch.zeros_like(partial)
    if not partial.any() or partial.all():
        return covered
    wholes, whole_scores = boxes[~partial], scores[~partial]
    part_rows, at_once = partial.nonzero()[:, 0], max(1, _PAIRS // len(wholes))
    for first in range(0, len(part_rows), at_once):
        rows = part_rows[first : first + at_once]
        parts = boxes[rows]
        overlaps = (
            torch.minimum(parts[:, None, 2:], wholes[None, :, 2:])
            - torch.maximum(parts[:, None, :2], wholes[None, :, :2])
        ).clamp(min=0)
        areas = (parts[:, 2:] - parts[:, :2]).prod(dim=1)
        rivals = whole_scores[None] >= _RIVAL_SCORE * scores[rows][:, None]
        covered[rows] = (rivals & (overlaps.prod(dim=2) >= _COVERED * areas[:, None])).any(dim=1)
    return covered

"""What was detected in one image, and what other programs take of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.data.masks import decode_mask, paste_masks, rle_of
from cachedet.structures import CategoryMap, Detections, SizeHW


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageReport:
    """What was detected in one image file, or frame of a video."""

    file: Path
    name: str  # that no other image of the call has: `a`, or `clip-frames/000015`
    drawing: Path | None  # None where none was asked for
    detections: Detections  # pixels of the image, best first
    categories: CategoryMap
    size_hw: SizeHW
    frame: int | None = None  # of a video: its number, from 0
    time: float | None = None  # of a video: seconds
    highest: float | None = None  # score of all that was found, also below the least one

    @cached_property
    def mask_codes(self) -> list[bytes]:
        """One for each detection, none without masks; made once, beside the detection."""
        return paste_masks(self.detections, self.size_hw)

    def to_json(self) -> dict[str, Any]:
        """File, drawing and detections: name, category_id, score, box xyxy, COCO RLE of a mask."""
        columns = (self.detections.boxes, self.detections.scores, self.detections.labels)
        detections: list[dict[str, Any]] = [
            {
                "name": self.categories.names[label],
                "category_id": self.categories.ids[label],
                "score": score,
                "box": box,
            }
            for box, score, label in zip(*(column.tolist() for column in columns), strict=True)
        ]
        for detection, code in zip(detections, self.mask_codes, strict=False):
            detection["segmentation"] = rle_of(code, self.size_hw)
        drawing = None if self.drawing is None else str(self.drawing)
        frame = {} if self.frame is None else {"frame": self.frame, "time": self.time}
        return {"file": str(self.file), "drawing": drawing, **frame, "detections": detections}

    def arrays(self) -> dict[str, NDArray[Any] | None]:
        """xyxy, confidence, class_id (labels 0..K-1) and mask (D, H, W): what supervision takes.

        Examples:
            >>> supervision.Detections(**image.arrays())
        """
        masks = [decode_mask(code, self.size_hw) > 0 for code in self.mask_codes]
        return {
            "xyxy": self.detections.boxes.numpy(),
            "confidence": self.detections.scores.numpy(),
            "class_id": self.detections.labels.numpy(),
            "mask": np.stack(masks) if masks else None,
        }

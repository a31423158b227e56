"""What the page is told of one image: detections as `predict` lists them, and its pixels.

The pixels are those that the detector saw (upright, with 8 bits, of any format that is decoded):
a browser shows no TIFF and no HEIC, and turns some images another way.
"""

from __future__ import annotations

import base64
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cachedet.prediction.image_detector import ImageDetector
from cachedet.prediction.image_report import ImageReport
from cachedet.prediction.read_ahead import decode_for
from cachedet.structures import Annotations, CategoryMap, SizeHW
from cachedet.text import printable

_SHOWN_SIDE = 2048  # pixels at most of what the page shows; boxes are those of the whole image
_QUALITY = 90  # of its JPEG


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """Ground truth of one image of a folder."""

    annotations: Annotations
    row: int

    def lack(self, size_hw: SizeHW) -> str | None:
        """Why there is nothing to show beside an image of this size."""
        height, width = self.annotations.size_of(self.row)
        if (height, width) == size_hw:
            return None
        return (
            f"annotated as {width}x{height}, the upright file is {size_hw[1]}x{size_hw[0]}: its "
            "ground truth is not shown"
        )

    def to_json(self, categories: CategoryMap) -> list[dict[str, Any]]:
        """Name, box xyxy and whether it is a crowd; the label of the detector's class, or -1."""
        ours = self.annotations.categories.names
        labels = {name: label for label, name in enumerate(categories.names)}
        boxes = self.annotations.boxes_of(self.row)
        columns = (self.annotations.boxes, self.annotations.labels, self.annotations.crowd)
        rows = zip(*(column[boxes].tolist() for column in columns), strict=True)
        return [
            {
                "name": printable(ours[label]),
                "label": labels.get(ours[label], -1),
                "box": box,
                "crowd": crowd,
            }
            for box, label, crowd in rows
        ]


def answer(
    content: bytes, detector: ImageDetector, *, name: str, truth: Truth | None = None
) -> bytes:
    """JSON of all that the detector finds in an image file's bytes; `name` is what to call it.

    Raises BadImageError, without the name.
    """
    started = time.monotonic()
    images = decode_for(detector, content, keeps_pixels=True)
    prepared = detector.prepare(images, keeps_pixels=True)
    report = ImageReport(
        file=Path(name),
        name=name,
        drawing=None,
        detections=detector.detect([prepared])[0],
        categories=detector.categories,
        size_hw=prepared.image_hw,
    )
    seconds = time.monotonic() - started
    lack = None if truth is None else truth.lack(prepared.image_hw)
    values = {
        "name": printable(name),
        "width": prepared.image_hw[1],
        "height": prepared.image_hw[0],
        "seconds": seconds,
        "note": images[0].note,
        "detections": report.to_json()["detections"],
        "truth": None if truth is None or lack else truth.to_json(detector.categories),
        "truth_note": lack,
        "pixels": _data_url(images[-1].pixels),
    }
    return json.dumps(values, allow_nan=False).encode()


def _data_url(pixels: NDArray[np.uint8]) -> str:
    image = as_jpeg(pixels, long_side=_SHOWN_SIDE, quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"


def as_jpeg(pixels: NDArray[np.uint8], *, long_side: int, quality: int) -> bytes:
    """Pixels (H, W, 3), shrunk to `long_side` where they are more."""
    image = Image.fromarray(pixels)
    image.thumbnail((long_side, long_side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()

"""One view of one image in numbers.

The whole image is scaled, a window of it is kept (mostly all of it), mirrored or not, coloured
anew or not, and padded at the bottom and right:
image -> scaled -> window = valid part of the view -> padding.
Letters: M boxes, D detections.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedet.data.colours import Colour
from cachedet.structures import Detections, SizeHW


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Maps pixels of the image to pixels of the view, and back."""

    image_hw: SizeHW
    scaled_hw: SizeHW  # of the whole image
    offset_yx: tuple[int, int]  # of the window in the scaled image
    valid_hw: SizeHW  # of the window; the rest of the view up to `padded_hw` is padding
    padded_hw: SizeHW
    flip: bool  # the window is mirrored
    colour: Colour | None = None  # None: that of the image
    is_cut_out: bool = False  # before it is resized: much faster, and off by rounding

    @property
    def is_window(self) -> bool:
        """Whether some of the image lies outside the view."""
        return self.valid_hw != self.scaled_hw

    def window_in_image(self) -> tuple[float, float, float, float]:
        """The window, xyxy in pixels of the image."""
        (top, left), (height, width) = self.offset_yx, self.valid_hw
        edges = np.array([left, top, left + width, top + height]) / self._scales()
        tall, wide = self.image_hw
        x1, y1, x2, y2 = np.minimum(edges, [wide, tall, wide, tall]).tolist()
        return x1, y1, x2, y2

    def boxes_to_view(self, boxes: NDArray[np.float64]) -> Tensor:
        """(M, 4) xyxy of the image -> (M, 4) float32 of the view, clipped to its valid part."""
        height, width = self.valid_hw
        mapped = boxes * self._scales() - self._offsets()
        if self.flip:
            mapped[:, [0, 2]] = width - mapped[:, [2, 0]]
        mapped[:, [0, 2]] = mapped[:, [0, 2]].clip(0, width)
        mapped[:, [1, 3]] = mapped[:, [1, 3]].clip(0, height)
        return torch.from_numpy(mapped.astype(np.float32))

    def boxes_to_image(self, boxes: Tensor) -> Tensor:
        """Inverse of `boxes_to_view`: (D, 4) xyxy of the view -> (D, 4) float32 of the image."""
        mapped = boxes.to(torch.float64).cpu().clone()
        if self.flip:
            mapped[:, [0, 2]] = self.valid_hw[1] - mapped[:, [2, 0]]
        mapped += torch.from_numpy(self._offsets())
        return (mapped / torch.from_numpy(self._scales())).to(torch.float32)

    def detections_to_image(self, detections: Detections) -> Detections:
        """Detections in pixels of the view -> on the CPU, in pixels of the image."""
        moved = replace(detections.cpu(), boxes=self.boxes_to_image(detections.boxes))
        if moved.masks is None or not self.flip:
            return moved
        return replace(moved, masks=moved.masks.flip(2))

    def affine_to_image(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Scale and origin (x, y): a point p of the view is scale * p + origin of the image."""
        scale_y = self.image_hw[0] / self.scaled_hw[0]
        scale_x = self.image_hw[1] / self.scaled_hw[1]
        top, left = self.offset_yx
        if self.flip:
            return (-scale_x, scale_y), ((left + self.valid_hw[1]) * scale_x, top * scale_y)
        return (scale_x, scale_y), (left * scale_x, top * scale_y)

    def visible_fraction(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """(M, 4) xyxy of the image -> (M,) share of each box in the image that is in view.

        1 for a box without area, and for all where the view shows the whole image.
        """
        if not self.is_window:
            return np.ones(len(boxes))
        height, width = self.image_hw
        inside = _clip(boxes, (0, 0, width, height))
        areas, visible = _areas(inside), _areas(_clip(inside, self.window_in_image()))
        return np.divide(visible, areas, out=np.ones(len(boxes)), where=areas > 0)

    def cut_by_window(self, boxes: Tensor, *, margin: float) -> Tensor:
        """(D, 4) xyxy of the view -> (D,) bool: nearer than `margin` to where the window cuts.

        Where the window ends with the image, nothing is cut.
        """
        (top, left), (height, width) = self.offset_yx, self.valid_hw
        cuts_left, cuts_top = left > 0, top > 0
        cuts_right = left + width < self.scaled_hw[1]
        cuts_bottom = top + height < self.scaled_hw[0]
        if self.flip:
            cuts_left, cuts_right = cuts_right, cuts_left
        ends = boxes[:, 2:] > boxes.new_tensor([width - margin, height - margin])
        near = torch.cat([boxes[:, :2] < margin, ends], dim=1)
        cuts = torch.tensor([cuts_left, cuts_top, cuts_right, cuts_bottom], device=boxes.device)
        return (near & cuts).any(dim=1)

    def _scales(self) -> NDArray[np.float64]:
        scale_y = self.scaled_hw[0] / self.image_hw[0]
        scale_x = self.scaled_hw[1] / self.image_hw[1]
        return np.array([scale_x, scale_y, scale_x, scale_y])

    def _offsets(self) -> NDArray[np.float64]:
        top, left = self.offset_yx
        return np.array([left, top, left, top], dtype=np.float64)


def _clip(
    boxes: NDArray[np.float64], region: tuple[float, float, float, float]
) -> NDArray[np.float64]:
    x1, y1, x2, y2 = region
    return boxes.clip([x1, y1, x1, y1], [x2, y2, x2, y2])


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    areas: NDArray[np.float64] = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return areas

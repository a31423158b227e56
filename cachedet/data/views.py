"""Views: named, deterministic geometries of a picture, and the buckets their sizes fall into.

A view resizes the picture so that its long side is `image_size * scale`, flips it or not, and pads
it at the bottom and right up to the bucket: each side rounded up to the spec's pad multiple. Two
pictures of one bucket give maps of equal shape, so batches are rectangular without square padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedet.errors import InputError, nearest_names
from cachedet.structures import SizeHW, TargetMasks, Targets, Truth


@dataclass(frozen=True, kw_only=True)
class View:
    """A deterministic variant of a picture; its features are cached under `name`."""

    name: str
    scale: float = 1.0
    flip: bool = False


VIEWS = {view.name: view for view in (View(name="base"), View(name="hflip", flip=True))}


def parse_views(text: str) -> tuple[View, ...]:
    """``"base,hflip"`` -> views. Raises InputError on an unknown, repeated or missing name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in VIEWS:
            known = ", ".join(VIEWS)
            raise InputError(f"unknown view {name!r}{nearest_names(name, VIEWS)}; known: {known}")
    if not names or len(set(names)) != len(names):
        raise InputError(f"views must name each view once, got {text!r}; known: {', '.join(VIEWS)}")
    return tuple(VIEWS[name] for name in names)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One view of one picture in numbers: maps pixels of the picture to pixels of the view."""

    picture_hw: SizeHW
    resized_hw: SizeHW  # the valid part of the view; the rest up to `padded_hw` is padding
    padded_hw: SizeHW
    flip: bool

    def boxes_to_view(self, boxes: NDArray[np.float64]) -> Tensor:
        """(M, 4) xyxy of the picture -> (M, 4) float32 of the view, clipped to its valid part."""
        height, width = self.resized_hw
        mapped = boxes * self._scales()
        if self.flip:
            mapped[:, [0, 2]] = width - mapped[:, [2, 0]]
        mapped[:, [0, 2]] = mapped[:, [0, 2]].clip(0, width)
        mapped[:, [1, 3]] = mapped[:, [1, 3]].clip(0, height)
        return torch.from_numpy(mapped.astype(np.float32))

    def boxes_to_picture(self, boxes: Tensor) -> Tensor:
        """Inverse of `boxes_to_view`: (D, 4) xyxy of the view -> (D, 4) float32 of the picture."""
        mapped = boxes.to(torch.float64).cpu().clone()
        if self.flip:
            mapped[:, [0, 2]] = self.resized_hw[1] - mapped[:, [2, 0]]
        return (mapped / torch.from_numpy(self._scales())).to(torch.float32)

    def _scales(self) -> NDArray[np.float64]:
        scale_y = self.resized_hw[0] / self.picture_hw[0]
        scale_x = self.resized_hw[1] / self.picture_hw[1]
        return np.array([scale_x, scale_y, scale_x, scale_y])


def make_geometry(
    view: View, *, picture_hw: SizeHW, image_size: int, pad_multiple: int
) -> Geometry:
    """The geometry of `view` for a picture of `picture_hw` pixels (aspect ratio is kept)."""
    factor = image_size * view.scale / max(picture_hw)
    height, width = (max(1, round(side * factor)) for side in picture_hw)
    return Geometry(
        picture_hw=picture_hw,
        resized_hw=(height, width),
        padded_hw=(round_up(height, pad_multiple), round_up(width, pad_multiple)),
        flip=view.flip,
    )


def make_targets(truth: Truth, row: int, geometry: Geometry) -> Targets:
    """The boxes of one picture in pixels of its view; boxes clipped to nothing are left out."""
    where = truth.boxes_of(row)
    boxes = geometry.boxes_to_view(truth.boxes[where])
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    masks = None
    if truth.masks is not None:
        own = where.start + kept.nonzero()[:, 0]
        codes = tuple(truth.masks[int(box)] for box in own)
        masks = TargetMasks(codes=codes, picture_hw=geometry.picture_hw, flip=geometry.flip)
    return Targets(
        image_id=int(truth.image_ids[row]),
        size_hw=geometry.resized_hw,
        boxes=boxes[kept],
        labels=torch.from_numpy(truth.labels[where])[kept],
        crowd=torch.from_numpy(truth.crowd[where])[kept],
        masks=masks,
    )


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is not smaller."""
    return -(-value // multiple) * multiple

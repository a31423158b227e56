"""Regions that all levels share, and what becomes of the boxes that a region shows.

Letters: n images, M boxes, C channels, h w feature cells, R S rows and columns of the grid.
The grid has cells of `spec.pad_multiple` pixels, which is a whole number of feature cells on every
level, whatever the strides: what is moved by grid cells is moved exactly on all levels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cachedet.data.views import LEAST_VISIBLE
from cachedet.detector.boxes import box_areas, clip_boxes
from cachedet.structures import Features, FeatureSpec, SizeHW, TargetMasks, Targets

Window = tuple[int, int, int, int]
"""xyxy in pixels; may reach beyond the view."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A rectangle of grid cells."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Grid:
    """The coarsest cells to which all levels are aligned."""

    spec: FeatureSpec

    @property
    def cell(self) -> int:
        """Pixels of a grid cell's side."""
        return self.spec.pad_multiple

    def shape_of(self, features: Features) -> SizeHW:
        """(R, S) of maps (n, C, h, w). Raises ValueError where they are not whole grid cells."""
        sizes = {
            (maps.shape[2] * self._stride(level), maps.shape[3] * self._stride(level))
            for level, maps in self.maps_in(features).items()
        }
        height, width = next(iter(sizes))
        if len(sizes) > 1 or height % self.cell or width % self.cell:
            shapes = {level: tuple(maps.shape) for level, maps in features.items()}
            raise ValueError(
                f"maps of one batch must cover the same pixels, a multiple of {self.cell}, got "
                f"{sorted(sizes)} from {shapes}; read them with the spec of their store"
            )
        return height // self.cell, width // self.cell

    def maps_in(self, features: Features) -> Features:
        """Those that have places; tokens have none and stay as they are."""
        tokens = {level.name for level in self.spec if level.tokens}
        return {level: maps for level, maps in features.items() if level not in tokens}

    def slices(self, level: str, region: Region) -> tuple[slice, slice]:
        """Rows and columns of a level's map."""
        scale = self.cell // self._stride(level)
        return (
            slice(region.top * scale, (region.top + region.height) * scale),
            slice(region.left * scale, (region.left + region.width) * scale),
        )

    def window_of(self, region: Region) -> Window:
        """The region in pixels."""
        top, left = region.top * self.cell, region.left * self.cell
        return left, top, left + region.width * self.cell, top + region.height * self.cell

    def touched(self, size_hw: SizeHW) -> SizeHW:
        """(R, S) of the cells that hold a valid pixel."""
        return -(-size_hw[0] // self.cell), -(-size_hw[1] // self.cell)

    def _stride(self, level: str) -> int:
        return next(known.stride for known in self.spec if known.name == level)


def show_boxes(targets: Targets, window: Window) -> Targets:
    """What the window shows of the boxes, in its own pixels.

    A box is clipped. It becomes crowd, which losses ignore, where less than a quarter of it is
    left, and disappears where nothing is. Masks follow.
    """
    x1, y1, x2, y2 = window
    height, width = targets.size_hw
    size_hw = (min(y2, height) - y1, min(x2, width) - x1)
    moved = targets.boxes - targets.boxes.new_tensor([x1, y1, x1, y1])
    clipped = clip_boxes(moved, size_hw)
    visible = box_areas(clipped) / box_areas(moved).clamp(min=torch.finfo(moved.dtype).tiny)
    shown = _keep_visible(replace(targets, size_hw=size_hw), clipped, visible)
    return replace(shown, masks=_move_masks(shown.masks, x1, y1))


def mirror_boxes(targets: Targets, width: int) -> Targets:
    """Boxes and masks of a view mirrored along x over `width` pixels, all of which are valid."""
    x1, y1, x2, y2 = targets.boxes.unbind(1)
    masks = _move_masks(targets.masks, width, 0)
    if masks is not None:
        scale_x, scale_y = masks.scale_xy
        masks = replace(masks, scale_xy=(-scale_x, scale_y))
    mirrored = torch.stack([width - x2, y1, width - x1, y2], dim=1)
    targets = replace(targets, size_hw=(targets.size_hw[0], width), masks=masks)
    return _keep_visible(targets, mirrored, torch.ones_like(x1))


def _keep_visible(targets: Targets, boxes: Tensor, visible: Tensor) -> Targets:
    """The boxes (M, 4) of which a share (M,) can be seen, with their masks.

    A box so thin that rounding left it no width goes too: no anchor can be coded against it.
    """
    kept = (visible > 0) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    masks = targets.masks
    if masks is not None:
        numbers = kept.nonzero()[:, 0].tolist()
        masks = replace(masks, codes=tuple(masks.codes[number] for number in numbers))
    return replace(
        targets,
        boxes=boxes[kept],
        labels=targets.labels[kept],
        crowd=(targets.crowd | (visible < LEAST_VISIBLE))[kept],
        masks=masks,
    )


def _move_masks(masks: TargetMasks | None, x: int, y: int) -> TargetMasks | None:
    """The masks of a view in pixels that are counted from its point (x, y)."""
    if masks is None:
        return None
    (scale_x, scale_y), (origin_x, origin_y) = masks.scale_xy, masks.origin_xy
    return replace(masks, origin_xy=(origin_x + scale_x * x, origin_y + scale_y * y))

"""Regions that all levels share, and what becomes of the boxes that a region shows or hides.

Letters: n images, M boxes, C channels, h w feature cells, R S rows and columns of the grid.
The grid has cells of `spec.pad_multiple` pixels, which is a whole number of feature cells on every
level, whatever the strides: what is moved by grid cells is moved exactly on all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cachedet.data.views import LEAST_VISIBLE
from cachedet.detector.boxes import box_areas, clip_boxes, covered_fraction
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
            for level, maps in features.items()
        }
        height, width = next(iter(sizes))
        if len(sizes) > 1 or height % self.cell or width % self.cell:
            shapes = {level: tuple(maps.shape) for level, maps in features.items()}
            raise ValueError(
                f"maps of one batch must cover the same pixels, a multiple of {self.cell}, got "
                f"{sorted(sizes)} from {shapes}; read them with the spec of their store"
            )
        return height // self.cell, width // self.cell

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

    def filled(self, size_hw: SizeHW) -> SizeHW:
        """(R, S) of the cells that hold valid pixels only."""
        return size_hw[0] // self.cell, size_hw[1] // self.cell

    def around(self, box: Tensor) -> Region:
        """The smallest region that holds the box (4,)."""
        x1, y1, x2, y2 = box.tolist()
        left, top = int(x1 // self.cell), int(y1 // self.cell)
        right, bottom = int(-(-x2 // self.cell)), int(-(-y2 // self.cell))
        return Region(top=top, left=left, height=bottom - top, width=right - left)

    def _stride(self, level: str) -> int:
        return next(known.stride for known in self.spec if known.name == level)


def clone_maps(features: Features) -> Features:
    """The same maps, to be written on."""
    return {level: maps.clone() for level, maps in features.items()}


def copy_region(
    grid: Grid,
    source: Features,
    *,
    image: int,
    region: Region,
    canvas: Features,
    onto: int,
    place: Region,
) -> None:
    """Write `region` of one image's maps over `place` of the canvas, on every level."""
    for level, maps in canvas.items():
        rows, columns = grid.slices(level, region)
        rows_there, columns_there = grid.slices(level, place)
        maps[onto, :, rows_there, columns_there] = source[level][image, :, rows, columns]


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


def hide_boxes(targets: Targets, window: Window) -> Targets:
    """What is left of the boxes where something else lies over the window.

    A box shrinks to the smallest one around the part that can be seen; quarter and nothing as in
    `show_boxes`. Masks are dropped: a bitmap of the image cannot say what is hidden.
    """
    cover = targets.boxes.new_tensor([window])
    visible = 1 - covered_fraction(targets.boxes, cover)[:, 0]
    return _keep_visible(replace(targets, masks=None), _trim(targets.boxes, window), visible)


def place_boxes(targets: Targets, place: Window) -> Targets:
    """Boxes of a window, in the pixels of the view it was put into at `place`; without masks."""
    x1, y1, _, _ = place
    moved = targets.boxes + targets.boxes.new_tensor([x1, y1, x1, y1])
    return _keep_visible(replace(targets, masks=None), moved, _all_visible(moved))


def mirror_boxes(targets: Targets, width: int) -> Targets:
    """Boxes and masks of a view mirrored along x over `width` pixels, all of which are valid."""
    x1, y1, x2, y2 = targets.boxes.unbind(1)
    masks = targets.masks
    if masks is not None:
        (scale_x, scale_y), (origin_x, origin_y) = masks.scale_xy, masks.origin_xy
        masks = replace(
            masks,
            scale_xy=(-scale_x, scale_y),
            origin_xy=(origin_x + scale_x * width, origin_y),
        )
    mirrored = torch.stack([width - x2, y1, width - x1, y2], dim=1)
    targets = replace(targets, size_hw=(targets.size_hw[0], width), masks=masks)
    return _keep_visible(targets, mirrored, _all_visible(mirrored))


def join_targets(own: Targets, parts: Sequence[Targets], *, size_hw: SizeHW) -> Targets:
    """The boxes of all parts as those of one image, which keeps the id of `own`; no masks."""
    return replace(
        own,
        size_hw=size_hw,
        boxes=torch.cat([part.boxes for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        crowd=torch.cat([part.crowd for part in parts]),
        masks=None,
    )


def _all_visible(boxes: Tensor) -> Tensor:
    """(M,)"""
    return torch.ones_like(boxes[:, 0])


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
    """The masks of a view in the pixels of its window that starts at (x, y)."""
    if masks is None:
        return None
    (scale_x, scale_y), (origin_x, origin_y) = masks.scale_xy, masks.origin_xy
    return replace(masks, origin_xy=(origin_x + scale_x * x, origin_y + scale_y * y))


def _trim(boxes: Tensor, window: Window) -> Tensor:
    """(M, 4) boxes without the ends that lie under the window across their whole side."""
    x1, y1, x2, y2 = boxes.unbind(1)
    left, top, right, bottom = window
    is_crossed = (top <= y1) & (y2 <= bottom)  # from top to bottom: its left or right may go
    is_split = (left <= x1) & (x2 <= right)
    return torch.stack(
        [
            torch.where(is_crossed & (left <= x1), x1.clamp(min=right), x1),
            torch.where(is_split & (top <= y1), y1.clamp(min=bottom), y1),
            torch.where(is_crossed & (x2 <= right), x2.clamp(max=left), x2),
            torch.where(is_split & (y2 <= bottom), y2.clamp(max=top), y2),
        ],
        dim=1,
    )

"""Augmentation of single images' maps: translation, crop, flip.

Letters: n images, R S rows and columns of the grid (augment_regions.py). Every function returns
new targets; `flip` writes on the maps it is given, the others return new ones.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from cachedet.augmentation.draws import RandomDraws, draw_images, draw_number, is_drawn
from cachedet.augmentation.regions import (
    Grid,
    Region,
    clone_maps,
    copy_region,
    mirror_boxes,
    show_boxes,
)
from cachedet.structures import Batch, Features, SizeHW


def translate(batch: Batch, draws: RandomDraws, *, grid: Grid, chance: float, most: float) -> Batch:
    """Shift maps by whole grid cells; zeros come in, as at the edge of a convolution's input.

    Args:
        batch: n images.
        draws: of the batch.
        grid: of the store's levels.
        chance: of each image.
        most: largest shift as a share of each side, but at least one cell.
    """
    features, targets = clone_maps(batch.features), list(batch.targets)
    shape = grid.shape_of(batch.features)
    for image in draw_images(len(targets), chance=chance, draws=draws):
        touched = grid.touched(targets[image].size_hw)
        down, right = (
            _draw_shift(side, touched=own, most=most, generator=draws.of_image(image))
            for side, own in zip(shape, touched, strict=True)
        )
        shift_maps(grid, batch.features, image=image, down=down, right=right, canvas=features)
        window = Region(top=-down, left=-right, height=shape[0], width=shape[1])
        targets[image] = show_boxes(targets[image], grid.window_of(window))
    return replace(batch, features=features, targets=targets)


def shift_maps(
    grid: Grid, source: Features, *, image: int, down: int, right: int, canvas: Features
) -> None:
    """Write one image's maps onto the canvas, shifted by grid cells, zeros where nothing is."""
    rows, columns = grid.shape_of(source)
    height, width = rows - abs(down), columns - abs(right)
    for maps in canvas.values():
        maps[image] = 0
    copy_region(
        grid,
        source,
        image=image,
        region=Region(top=max(-down, 0), left=max(-right, 0), height=height, width=width),
        canvas=canvas,
        onto=image,
        place=Region(top=max(down, 0), left=max(right, 0), height=height, width=width),
    )


def crop(batch: Batch, draws: RandomDraws, *, grid: Grid, chance: float, least: float) -> Batch:
    """Cut a window out of every image: one size for the batch, each image its own place.

    Args:
        batch: n images.
        draws: of the batch.
        grid: of the store's levels.
        chance: of the whole batch, which becomes smaller and its step cheaper.
        least: smallest window as a share of each side.
    """
    if not is_drawn(chance, draws.of_batch):
        return batch
    size_rs = _draw_window_size(grid.shape_of(batch.features), least, draws.of_batch)
    regions = [
        draw_region(size_rs, grid.touched(own.size_hw), draws.of_image(image))
        for image, own in enumerate(batch.targets)
    ]
    features = {
        level: torch.stack(
            [own[:, *grid.slices(level, at)] for own, at in zip(maps, regions, strict=True)]
        )
        for level, maps in batch.features.items()
    }
    targets = [
        show_boxes(own, grid.window_of(at)) for own, at in zip(batch.targets, regions, strict=True)
    ]
    return replace(batch, features=features, targets=targets)


def flip(batch: Batch, draws: RandomDraws, *, grid: Grid, chance: float) -> Batch:
    """Mirror maps along x over their whole width, padding included, where they lie.

    An approximation: a backbone's features of the mirrored image are other than these, because
    its kernels and its strides have sides (docs/augmentation.md has the size of the error). The
    padding comes to the left and counts as valid, since only the right end can be cut off.
    """
    drawn = draw_images(len(batch.targets), chance=chance, draws=draws)
    targets = list(batch.targets)
    _, columns = grid.shape_of(batch.features)
    for image in drawn:
        for maps in batch.features.values():
            maps[image].copy_(maps[image].flip(-1))
        targets[image] = mirror_boxes(targets[image], columns * grid.cell)
    return replace(batch, targets=targets)


def draw_region(size_rs: SizeHW, within_rs: SizeHW, generator: torch.Generator) -> Region:
    """A region of this size inside the first R x S cells, or at their start if it is larger."""
    top, left = (
        draw_number(0, max(0, room - side), generator)
        for side, room in zip(size_rs, within_rs, strict=True)
    )
    return Region(top=top, left=left, height=size_rs[0], width=size_rs[1])


def _draw_shift(side: int, *, touched: int, most: float, generator: torch.Generator) -> int:
    """Grid cells along one side; at least one cell that holds something stays."""
    farthest = max(1, math.floor(most * side))
    return draw_number(-min(farthest, touched - 1), min(farthest, side - 1), generator)


def _draw_window_size(shape_rs: SizeHW, least: float, generator: torch.Generator) -> SizeHW:
    rows, columns = (
        draw_number(max(1, math.ceil(least * side)), side, generator) for side in shape_rs
    )
    return rows, columns

"""Feature-space augmentation: translation, crop and flip, with the boxes of the images.

Letters: n images, R S rows and columns of the grid (`Grid`). Every step returns new targets; `flip`
writes on the maps it is given, the others return new ones. See docs/augmentation.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from cachedet.augmentation.draws import RandomDraws, draw_images, draw_number, is_drawn
from cachedet.augmentation.regions import Grid, Region, mirror_boxes, show_boxes
from cachedet.config.run import AugmentConfig
from cachedet.structures import Batch, Features, FeatureSpec, LevelSpec, SizeHW

Augment = Callable[[Batch, RandomDraws], Batch]
"""A batch from one and all that is random; targets stay as they were.

May write on the maps it is given: fresh memory for large ones takes five times as long.
"""


def make_augment(config: AugmentConfig, *, spec: FeatureSpec) -> Augment | None:
    """All steps the config switches on, or None where it switches on none.

    `spec` has all levels of the store, also those the detector leaves out.
    """
    grid = Grid(spec)
    steps: list[tuple[float, Augment]] = [
        (
            config.translate,
            partial(translate, grid=grid, probability=config.translate, most=config.translate_by),
        ),
        (config.crop, partial(crop, grid=grid, probability=config.crop, least=config.crop_to)),
        (config.flip, partial(flip, grid=grid, probability=config.flip)),
    ]
    taken = tuple(step for probability, step in steps if probability > 0)
    return partial(_take_steps, steps=taken) if taken else None


def make_pixel_augment(config: AugmentConfig, *, name: str, spec: FeatureSpec) -> Augment | None:
    """The same steps with the same draws on images, which are moved before the backbone.

    `name` is that of the pixels in a batch's features; the steps keep to the grid of `spec`, the
    backbone's levels.
    """
    pixels = LevelSpec(name=name, channels=3, stride=1)
    return make_augment(config, spec=FeatureSpec((pixels, *spec)))


def translate(
    batch: Batch, draws: RandomDraws, *, grid: Grid, probability: float, most: float
) -> Batch:
    """Shift maps by whole grid cells; zeros come in, as at the edge of a convolution's input.

    `probability` is each image's, `most` the largest shift as a share of a side, at least one cell.
    """
    maps_in = grid.maps_in(batch.features)
    canvas = {level: maps.clone() for level, maps in maps_in.items()}
    targets = list(batch.targets)
    shape = grid.shape_of(batch.features)
    for image in draw_images(len(targets), probability=probability, draws=draws):
        touched = grid.touched(targets[image].size_hw)
        down, right = (
            _draw_shift(side, touched=cells, most=most, generator=draws.of_image(image))
            for side, cells in zip(shape, touched, strict=True)
        )
        _shift_maps(grid, maps_in, image=image, down=down, right=right, canvas=canvas)
        window = Region(top=-down, left=-right, height=shape[0], width=shape[1])
        targets[image] = show_boxes(targets[image], grid.window_of(window))
    return replace(batch, features={**batch.features, **canvas}, targets=targets)


def crop(
    batch: Batch, draws: RandomDraws, *, grid: Grid, probability: float, least: float
) -> Batch:
    """Cut a window out of every image: one size for the batch, each image its own place.

    `probability` is the whole batch's, which becomes smaller and its step cheaper; `least` is the
    smallest window as a share of each side.
    """
    if not is_drawn(probability, draws.of_batch):
        return batch
    rows, columns = (
        draw_number(max(1, math.ceil(least * side)), side, draws.of_batch)
        for side in grid.shape_of(batch.features)
    )
    regions = [
        _draw_region((rows, columns), grid.touched(targets.size_hw), draws.of_image(image))
        for image, targets in enumerate(batch.targets)
    ]
    shown_maps = {
        level: torch.stack(
            [one[:, *grid.slices(level, at)] for one, at in zip(maps, regions, strict=True)]
        )
        for level, maps in grid.maps_in(batch.features).items()
    }
    shown = [
        show_boxes(targets, grid.window_of(at))
        for targets, at in zip(batch.targets, regions, strict=True)
    ]
    return replace(batch, features={**batch.features, **shown_maps}, targets=shown)


def flip(batch: Batch, draws: RandomDraws, *, grid: Grid, probability: float) -> Batch:
    """Mirror maps along x over their whole width, padding included, where they lie.

    An approximation: a backbone's features of the mirrored image are other than these, because
    its kernels and its strides have sides (docs/augmentation.md has the size of the error). The
    padding comes to the left and counts as valid, since only the right end can be cut off.
    """
    targets = list(batch.targets)
    _, columns = grid.shape_of(batch.features)
    for image in draw_images(len(targets), probability=probability, draws=draws):
        for maps in grid.maps_in(batch.features).values():
            maps[image].copy_(maps[image].flip(-1))
        targets[image] = mirror_boxes(targets[image], columns * grid.cell)
    return replace(batch, targets=targets)


def _take_steps(batch: Batch, draws: RandomDraws, *, steps: tuple[Augment, ...]) -> Batch:
    for step in steps:
        batch = step(batch, draws)
    return batch


def _shift_maps(
    grid: Grid, source: Features, *, image: int, down: int, right: int, canvas: Features
) -> None:
    """Write one image's maps onto the canvas, shifted by grid cells, zeros where nothing is."""
    rows, columns = grid.shape_of(source)
    height, width = rows - abs(down), columns - abs(right)
    shown = Region(top=max(-down, 0), left=max(-right, 0), height=height, width=width)
    covered = Region(top=max(down, 0), left=max(right, 0), height=height, width=width)
    for level, maps in canvas.items():
        maps[image] = 0
        maps[image, :, *grid.slices(level, covered)] = source[level][
            image, :, *grid.slices(level, shown)
        ]


def _draw_shift(side: int, *, touched: int, most: float, generator: torch.Generator) -> int:
    """Grid cells along one side; at least one cell that holds something stays."""
    farthest = max(1, math.floor(most * side))
    return draw_number(-min(farthest, touched - 1), min(farthest, side - 1), generator)


def _draw_region(size_rs: SizeHW, within_rs: SizeHW, generator: torch.Generator) -> Region:
    """A region of this size inside the first R x S cells, or at their start if it is larger."""
    top, left = (
        draw_number(0, max(0, most - side), generator)
        for side, most in zip(size_rs, within_rs, strict=True)
    )
    return Region(top=top, left=left, height=size_rs[0], width=size_rs[1])

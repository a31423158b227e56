"""Augmentation that mixes the images of a batch: mosaic and copy-paste of objects.

Letters: n images, R S rows and columns of the grid (augment_regions.py). Both take other images
from the batch as it came in, so the order of the images does not matter; a batch of one image
has nothing to mix and stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from cachedet.augmentation.draws import RandomDraws, draw_images, draw_number, draw_others
from cachedet.augmentation.regions import (
    Grid,
    Region,
    clone_maps,
    copy_region,
    hide_boxes,
    join_targets,
    place_boxes,
    show_boxes,
)
from cachedet.augmentation.spatial import draw_region
from cachedet.structures import Batch, Features, SizeHW, Targets

_LARGEST_PASTE = 0.5  # of the cells of a map; more would replace the image, not add to it


def mosaic(batch: Batch, draws: RandomDraws, *, grid: Grid, chance: float) -> Batch:
    """Put windows of four images, its own and three others', around a cross point.

    Unlike in arXiv 2004.10934 nothing is resized: maps cannot be. Each quadrant has at least a
    quarter of each side. In a batch of fewer than four images others are taken more than once;
    maps less than two grid cells wide or high stay as they are. The image keeps its id.
    """
    count, shape = len(batch.targets), grid.shape_of(batch.features)
    drawn = draw_images(count, chance=chance, draws=draws)
    if count < 2 or min(shape) < 2:
        return batch
    features, targets = clone_maps(batch.features), list(batch.targets)
    for image in drawn:
        generator = draws.of_image(image)
        others = draw_others(image, count=count, wanted=3, generator=generator)
        order = torch.randperm(4, generator=generator).tolist()
        sources = [(image, *others)[place] for place in order]
        parts = [
            _copy_window(batch, source, place, onto=image, canvas=features, grid=grid,
                         generator=generator)
            for source, place in zip(sources, _draw_quadrants(shape, generator), strict=True)
        ]  # fmt: skip
        size_hw = (shape[0] * grid.cell, shape[1] * grid.cell)
        targets[image] = join_targets(batch.targets[image], parts, size_hw=size_hw)
    return replace(batch, features=features, targets=targets)


def copy_paste(batch: Batch, draws: RandomDraws, *, grid: Grid, chance: float) -> Batch:
    """Lay an object of another image, with the cells around it, over a place.

    As arXiv 2012.07177, with rectangles: the region is the object's box, aligned outwards to grid
    cells, and boxes of the other image that reach into it come along. What it hides of this
    image's boxes shrinks or goes. Objects of which no region fits into the valid cells, or only
    one larger than half a map, are not taken.
    """
    count, (rows, columns) = len(batch.targets), grid.shape_of(batch.features)
    drawn = draw_images(count, chance=chance, draws=draws)
    if count < 2:
        return batch
    features, targets = clone_maps(batch.features), list(batch.targets)
    for image in drawn:
        own, generator = batch.targets[image], draws.of_image(image)
        source = draw_others(image, count=count, wanted=1, generator=generator)[0]
        room, most_cells = grid.filled(own.size_hw), _LARGEST_PASTE * rows * columns
        found = _objects(batch.targets[source], grid, room_rs=room, most_cells=most_cells)
        if not found:
            continue
        region = found[draw_number(0, len(found) - 1, generator)]
        place = draw_region((region.height, region.width), room, generator)
        copy_region(
            grid, batch.features, image=source, region=region,
            canvas=features, onto=image, place=place,
        )  # fmt: skip
        window = grid.window_of(place)
        pasted = place_boxes(show_boxes(batch.targets[source], grid.window_of(region)), window)
        parts = [hide_boxes(own, window), pasted]
        targets[image] = join_targets(own, parts, size_hw=own.size_hw)
    return replace(batch, features=features, targets=targets)


def _copy_window(
    batch: Batch,
    source: int,
    place: Region,
    *,
    onto: int,
    canvas: Features,
    grid: Grid,
    generator: torch.Generator,
) -> Targets:
    """Fill a quadrant with a window of one image; its boxes there."""
    own = batch.targets[source]
    region = draw_region((place.height, place.width), grid.touched(own.size_hw), generator)
    copy_region(
        grid, batch.features, image=source, region=region, canvas=canvas, onto=onto, place=place
    )
    return place_boxes(show_boxes(own, grid.window_of(region)), grid.window_of(place))


def _draw_quadrants(shape_rs: SizeHW, generator: torch.Generator) -> list[Region]:
    """Four regions that fill a map of at least 2 x 2 grid cells."""
    y, x = (
        draw_number(math.ceil(side / 4), side - math.ceil(side / 4), generator) for side in shape_rs
    )
    rows, columns = shape_rs
    return [
        Region(top=top, left=left, height=height, width=width)
        for top, height in ((0, y), (y, rows - y))
        for left, width in ((0, x), (x, columns - x))
    ]


def _objects(targets: Targets, grid: Grid, *, room_rs: SizeHW, most_cells: float) -> list[Region]:
    """The regions of the objects that may be pasted into an image."""
    regions = [grid.around(box) for box in targets.boxes[~targets.crowd]]
    return [
        region
        for region in regions
        if region.height <= room_rs[0]
        and region.width <= room_rs[1]
        and region.height * region.width <= most_cells
    ]

"""Draws what feature-space augmentation does to a real store, and measures how far flipped maps are
from the maps of the flipped image. Prints one JSON object.

python benchmarks/draw_augmentation.py --store train.zarr --images images/ [--out FILE.png]

The photograph goes through the same functions as the maps, as one more level of stride 1, so what
is drawn is what the functions did. The store needs the views base and hflip for the measurement;
without hflip only the drawing is made.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cachedet.augmentation.draws import RandomDraws
from cachedet.augmentation.regions import Grid
from cachedet.augmentation.steps import Augment, crop, flip, translate
from cachedet.data.images import decode_image
from cachedet.loading.residency import StreamedFeatures
from cachedet.loading.targets import targets_of
from cachedet.store.reader import FeatureStore
from cachedet.structures import Batch, FeatureSpec, LevelSpec, SizeHW, Targets

PHOTO = "photo"
PANEL, GAP, CAPTION = 236, 8, 20
PAPER, INK, OUTLINE = (250, 250, 250), (40, 40, 40), (255, 255, 255)
DASH, LEAST_SIDE = 5, 4  # pixels of an outline
COLOURS = 144  # of the palette: photographs in a PNG of less than 300 kB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/images/augmentation.png"))
    parser.add_argument("--seed", type=int, default=7, help="chooses images and what is drawn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = FeatureStore.open(options.store)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(store, options.images, seed=options.seed).save(options.out, optimize=True)
    report: dict[str, Any] = {
        "store": options.store.name,
        "backbone": store.manifest.backbone,
        "codec": store.manifest.codec,
        "drawn": str(options.out),
        "nbytes": options.out.stat().st_size,
    }
    if {"base", "hflip"} <= set(store.manifest.views):
        report["flip_error"] = measure_flip(store)
    print(json.dumps(report, indent=1))


def measure_flip(store: FeatureStore) -> dict[str, dict[str, float | int | None]]:
    """Relative error (root of summed squares) of flipped base maps against those of hflip.

    Over valid rows of the images that are as wide as their padding, where mirroring the map and
    the image agree to the cell. `unrelated` compares with the image before, `codec` is the
    error the store itself has.
    """
    sums: dict[str, dict[str, float]] = {level: {} for level in store.manifest.spec.names}
    images = 0
    for row, before in unpadded_rows(store):
        images += 1
        base, mirrored = store.read(row, "base"), store.read(row, "hflip")
        other = store.read(before, "hflip") if before is not None else None
        for level in store.manifest.spec:
            rows = targets_of(store, row, "base").size_hw[0] // level.stride
            annotations = mirrored[level.name][:, :rows]
            own = sums[level.name]
            add(own, "flip", base[level.name].flip(-1)[:, :rows], annotations)
            if other is not None:
                add(own, "unrelated", other[level.name][:, :rows], annotations)
    return {
        level: {"images": images, **relative(own), "codec": codec_error(store, level)}
        for level, own in sums.items()
    }


def unpadded_rows(store: FeatureStore) -> Iterator[tuple[int, int | None]]:
    """Images as wide as their bucket, each with the one before it in that bucket."""
    for bucket, rows in store.buckets("base").items():
        before = None
        for row in rows.tolist():
            if targets_of(store, row, "base").size_hw[1] == bucket[1]:
                yield row, before
                before = row


def add(sums: dict[str, float], name: str, found: Tensor, annotations: Tensor) -> None:
    for key, value in (
        (name, (found - annotations).square().sum()),
        (f"{name} of", annotations.square().sum()),
    ):
        sums[key] = sums.get(key, 0.0) + float(value)


def relative(sums: dict[str, float]) -> dict[str, float]:
    names = [name for name in ("flip", "unrelated") if name in sums]
    return {name: round(math.sqrt(sums[name] / sums[f"{name} of"]), 4) for name in names}


def codec_error(store: FeatureStore, level: str) -> float:
    own = store.quality[level]
    return round(math.sqrt(own.noise / own.signal), 5) if own.signal else 0.0


def draw_sheet(store: FeatureStore, images: Path, *, seed: int) -> Image.Image:
    """A cell for the image as it is cached and one for each augmentation."""
    batch = read_with_photos(store, images, seed=seed)
    finest = store.manifest.spec.levels[0]
    mean = batch.features[finest.name][0].mean(dim=0)
    limits = float(mean.min()), float(mean.max())
    before = draw_map(batch, finest, limits)
    captioned = [("as cached", draw_photo(batch), before)]
    for caption, step in make_steps(store):
        own = {level: of_level.clone() for level, of_level in batch.features.items()}
        after = step(replace(batch, features=own), RandomDraws((seed,), indices=range(4)))
        captioned.append((caption, draw_photo(after), draw_map(after, finest, limits)))
    cells = [draw_cell(*parts, width=before.width) for parts in captioned]
    return lay_out(cells, columns=2).quantize(COLOURS, dither=Image.Dither.NONE)


def make_steps(store: FeatureStore) -> list[tuple[str, Augment]]:
    """Photographs are a level of stride 1, which the grid allows without becoming coarser."""
    photo = LevelSpec(name=PHOTO, channels=3, stride=1)
    grid = Grid(FeatureSpec((photo, *store.manifest.spec.levels)))
    return [
        ("translate", partial(translate, grid=grid, probability=1, most=0.25)),
        ("crop", partial(crop, grid=grid, probability=1, least=0.6)),
        ("flip", partial(flip, grid=grid, probability=1)),
    ]


def read_with_photos(store: FeatureStore, images: Path, *, seed: int) -> Batch:
    """Four images with boxes of the largest bucket; their photographs are the finest level."""
    rows = max(store.buckets("base").values(), key=len)
    filled = [row for row in rows.tolist() if len(targets_of(store, row, "base").boxes)]
    order = torch.randperm(len(filled), generator=torch.Generator().manual_seed(seed))
    chosen = [filled[place] for place in order[:4].tolist()]
    spec = store.manifest.spec
    source = StreamedFeatures(store, levels=spec.names, device=torch.device("cpu"))
    maps = source.read([(row, "base") for row in chosen])
    targets = [targets_of(store, row, "base") for row in chosen]
    padded = Grid(spec).shape_of(maps)
    shape = (padded[0] * spec.pad_multiple, padded[1] * spec.pad_multiple)
    photos = [
        read_photo(images / store.annotations.file_names[row], own.size_hw, shape)
        for row, own in zip(chosen, targets, strict=True)
    ]
    return Batch(features={PHOTO: torch.stack(photos), **maps}, targets=targets)


def read_photo(path: Path, size_hw: SizeHW, padded_hw: SizeHW) -> Tensor:
    """(3, H, W) in [0, 1], padded with black."""
    resized = Image.fromarray(decode_image(path)).resize((size_hw[1], size_hw[0]))
    photo = torch.zeros(3, *padded_hw)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    photo[:, : size_hw[0], : size_hw[1]] = pixels / 255
    return photo


def draw_cell(caption: str, left: Image.Image, right: Image.Image, *, width: int) -> Image.Image:
    """Caption above two panels side by side."""
    height = max(left.height, right.height) + CAPTION
    cell = Image.new("RGB", (2 * width + GAP, height), PAPER)
    ImageDraw.Draw(cell).text((0, 2), caption, fill=INK, font=ImageFont.load_default(13))
    cell.paste(left, (0, CAPTION))
    cell.paste(right, (width + GAP, CAPTION))
    return cell


def draw_photo(batch: Batch) -> Image.Image:
    """The first image's photograph with its boxes."""
    pixels = batch.features[PHOTO][0].permute(1, 2, 0).mul(255).round().byte().numpy()
    return draw_boxes(pixels, batch.targets[0])


def draw_map(batch: Batch, level: LevelSpec, limits: tuple[float, float]) -> Image.Image:
    """The first image's mean over channels with its boxes, one square a cell."""
    low, high = limits
    mean = batch.features[level.name][0].mean(dim=0).sub(low).div(high - low).clamp(0, 1)
    cells = (colormaps["viridis"](mean.numpy())[..., :3] * 255).astype(np.uint8)
    pixels = cells.repeat(level.stride, axis=0).repeat(level.stride, axis=1)
    return draw_boxes(pixels, batch.targets[0])


def draw_boxes(pixels: NDArray[np.uint8], targets: Targets) -> Image.Image:
    """Scaled to the sheet; the outline of crowd boxes, which losses ignore, is broken."""
    scale = PANEL / 384
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels).resize((round(width * scale), round(height * scale)))
    canvas = ImageDraw.Draw(image)
    for box, is_crowd in zip(targets.boxes.tolist(), targets.crowd.tolist(), strict=True):
        x1, y1, x2, y2 = (round(edge * scale) for edge in box)
        x2, y2 = max(x2, x1 + LEAST_SIDE), max(y2, y1 + LEAST_SIDE)
        canvas.rectangle((x1, y1, x2 - 1, y2 - 1), outline=(0, 0, 0), width=4)
        step = DASH if is_crowd else 1
        for x in range(x1 + 1, x2 - 2, 2 * step):
            for y in (y1 + 1, y2 - 3):
                canvas.rectangle((x, y, min(x + step, x2 - 3), y + 1), fill=OUTLINE)
        for y in range(y1 + 1, y2 - 2, 2 * step):
            for x in (x1 + 1, x2 - 3):
                canvas.rectangle((x, y, x + 1, min(y + step, y2 - 3)), fill=OUTLINE)
    return image


def lay_out(cells: list[Image.Image], *, columns: int) -> Image.Image:
    lines = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    width = columns * cells[0].width + (columns + 1) * 2 * GAP
    heights = [max(cell.height for cell in line) for line in lines]
    sheet = Image.new("RGB", (width, sum(heights) + GAP * (len(lines) + 1)), PAPER)
    y = GAP
    for line, height in zip(lines, heights, strict=True):
        for place, cell in enumerate(line):
            sheet.paste(cell, (2 * GAP + place * (cell.width + 2 * GAP), y))
        y += height + GAP
    return sheet


if __name__ == "__main__":
    main()

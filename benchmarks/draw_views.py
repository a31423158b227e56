"""One photograph as every view sees it: its boxes, and the map it becomes. Writes one PNG.

Solid boxes teach; dashed orange ones are mostly outside the window and are ignored by the losses.
Grey is padding. The maps are means over the channels of one level, each in a range of its own.

python benchmarks/draw_views.py --images DIR --annotations FILE --out docs/images/views.png
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from cachedet.backbone.frozen import FrozenBackbone, load_backbone
from cachedet.data.annotation_formats import read_dataset
from cachedet.data.backbone_input import make_input
from cachedet.data.coco import CocoDataset
from cachedet.data.geometry import Geometry
from cachedet.data.images import decode_image
from cachedet.data.views import View, make_geometry, make_targets, parse_views
from cachedet.drawing.image_drawing import colour_of
from cachedet.structures import Targets

_PADDING = 0.82  # grey
_IGNORED = (1.0, 0.55, 0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """What is drawn of one view."""

    name: str
    geometry: Geometry
    image: NDArray[np.float32]  # (H, W, 3) in [0, 1], with padding
    heat: NDArray[np.float32]  # (h, w)
    targets: Targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("images", "annotations", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--file", help="file name of the image; default: the most boxes")
    parser.add_argument("--views", default="base,hflip,scale=0.5,crop=2,jitter=4,colour=3")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--level", default="C3")
    parser.add_argument("--columns", type=int, default=3, help="pairs side by side")
    parser.add_argument("--colours", type=int, default=128, help="of the PNG's palette")
    options = parser.parse_args()
    dataset = read_dataset(annotations=options.annotations, images=options.images)
    backbone = load_backbone(
        options.backbone, weights=options.weights, image_size=options.image_size
    )
    row = choose_row(dataset, options.file)
    panels = [
        make_panel(view, dataset, row, backbone, options.image_size, options.level)
        for view in parse_views(options.views)
    ]
    save(draw(panels, columns=options.columns), options.out, colours=options.colours)
    name = dataset.annotations.file_names[row]
    print(f"{options.out}: {name}, {options.out.stat().st_size:,} bytes")


def choose_row(dataset: CocoDataset, file: str | None) -> int:
    if file is not None:
        return dataset.annotations.file_names.index(file)
    return int(np.diff(dataset.annotations.offsets).argmax())


@torch.no_grad()
def make_panel(
    view: View, dataset: CocoDataset, row: int, backbone: FrozenBackbone, size: int, level: str
) -> Panel:
    pixels = decode_image(dataset.path_of(row))
    geometry = make_geometry(
        view,
        image_hw=(pixels.shape[0], pixels.shape[1]),
        image_id=int(dataset.annotations.image_ids[row]),
        image_size=size,
        pad_multiple=backbone.spec.pad_multiple,
    )
    inputs = make_input(pixels, geometry, backbone.preprocessing)
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (backbone.preprocessing.mean, backbone.preprocessing.std)
    )
    image = (inputs * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
    height, width = geometry.valid_hw
    image[height:], image[:, width:] = _PADDING, _PADDING
    return Panel(
        name=view.name,
        geometry=geometry,
        image=image,
        heat=backbone(inputs[None])[level][0].mean(dim=0).numpy(),
        targets=make_targets(dataset.annotations, row, geometry),
    )


def draw(panels: list[Panel], *, columns: int) -> Figure:
    """Pairs of view and map, `columns` a line."""
    lines = -(-len(panels) // columns)
    tall, wide = panels[0].geometry.padded_hw
    width = 4.8 * columns
    height = lines * (width / columns / 2 * tall / wide + 0.3)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(lines, 2 * columns, squeeze=False)
    for place in range(lines * columns):
        pair = axes[place // columns, 2 * (place % columns) : 2 * (place % columns) + 2]
        if place < len(panels):
            draw_pair(panels[place], pair)
        for one in pair:
            one.set_axis_off()
    return figure


def draw_pair(panel: Panel, pair: Any) -> None:
    height, width = panel.geometry.padded_hw
    extent = (0, width, height, 0)
    pair[0].imshow(panel.image, extent=extent)
    pair[1].imshow(panel.heat, extent=extent, cmap="magma", interpolation="nearest")
    grown = panel.geometry.scaled_hw[1] / panel.geometry.image_hw[1]
    pair[0].set_title(f"{panel.name}  ({width} x {height})", fontsize=9, loc="left")
    pair[1].set_title(f"its map (image scaled by {grown:.2f})", fontsize=9, loc="left")
    for box, label, crowd in zip(
        panel.targets.boxes.tolist(),
        panel.targets.labels.tolist(),
        panel.targets.crowd.tolist(),
        strict=True,
    ):
        x1, y1, x2, y2 = box
        colour = (
            _IGNORED if crowd else tuple(value / 255 for value in colour_of(label + 1))
        )  # blue on red
        for one in pair:
            one.add_patch(
                Rectangle(
                    (x1, y1),
                    x2 - x1,
                    y2 - y1,
                    fill=False,
                    edgecolor=colour,
                    linewidth=1.8,
                    linestyle="--" if crowd else "-",
                )
            )


def save(figure: Figure, path: Path, *, colours: int) -> None:
    """As a PNG with a palette: a third of the bytes of one in full colour."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, format="png")
    image = Image.open(buffer).convert("RGB")
    image.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()

"""From picture files to backbone input, and from there to features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.data.images import decode_picture, make_input
from cachedet.data.views import make_geometry, view_named
from cachedet.structures import Features, Preprocessing, Truth


def load_input(
    path: Path,
    *,
    view: str,
    image_id: int,
    image_size: int,
    pad_multiple: int,
    preprocessing: Preprocessing,
) -> Tensor:
    """One picture file as backbone input (3, H, W) of one view."""
    pixels = decode_picture(path)
    geometry = make_geometry(
        view_named(view),
        picture_hw=(pixels.shape[0], pixels.shape[1]),
        image_id=image_id,
        image_size=image_size,
        pad_multiple=pad_multiple,
    )
    return make_input(pixels, geometry, preprocessing)


@dataclass(frozen=True, kw_only=True, eq=False)
class InputLoader:
    """Loads rows of one data set as backbone input."""

    paths: Sequence[Path]  # by row
    image_ids: Sequence[int]  # by row
    image_size: int
    pad_multiple: int
    preprocessing: Preprocessing

    def load(self, row: int, view: str) -> Tensor:
        """(3, H, W)"""
        return load_input(
            self.paths[row],
            view=view,
            image_id=self.image_ids[row],
            image_size=self.image_size,
            pad_multiple=self.pad_multiple,
            preprocessing=self.preprocessing,
        )


def make_inputs(
    truth: Truth,
    *,
    images: Path,
    image_size: int,
    pad_multiple: int,
    preprocessing: Preprocessing,
) -> InputLoader:
    """Of the pictures of `truth`, row by row, in the folder `images`."""
    return InputLoader(
        paths=[images / name for name in truth.file_names],
        image_ids=truth.image_ids.tolist(),
        image_size=image_size,
        pad_multiple=pad_multiple,
        preprocessing=preprocessing,
    )


def run_backbone(backbone: FrozenBackbone, images: Tensor, *, batch_size: int) -> Features:
    """(n, 3, H, W) -> CPU maps (n, C, h, w), in batches that depend on nothing but the block."""
    device = next(backbone.parameters()).device
    parts = [backbone(batch.to(device)) for batch in torch.split(images, batch_size)]
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in backbone.spec.names}

"""Augmentation of values: channel dropout, and noise as strong as the codec's own error.

Letters: n pictures, C channels, h w feature cells. Boxes and masks stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from cachedet.training.batch import Batch
from cachedet.training.chance import draw_number

_LARGEST_SEED = 2**62


def channel_dropout(batch: Batch, generator: torch.Generator, *, share: float) -> Batch:
    """Zero this share of the channels of each picture and level, scale the others up.

    Dropout (arXiv 1207.0580) of whole channels (arXiv 1411.4280): a single cell would be given
    away by its neighbours. The expected value of every cell stays what it was.
    """
    return replace(
        batch,
        features={
            level: maps * _draw_kept(maps, share, generator).to(maps.device)
            for level, maps in batch.features.items()
        },
    )


def add_noise(batch: Batch, generator: torch.Generator, *, relative: Mapping[str, float]) -> Batch:
    """Gaussian noise, in each channel of each picture in proportion to its root mean square.

    Args:
        batch: n pictures.
        generator: of all that is drawn; noise on an accelerator comes from a generator there,
            seeded by this one, so it is the same on the same kind of device.
        relative: standard deviation by level, as a share of a channel's root mean square.
    """
    return replace(
        batch,
        features={
            level: maps + _draw_noise(maps, relative[level], generator)
            for level, maps in batch.features.items()
        },
    )


def _draw_kept(maps: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(n, C, 1, 1): 0, or what makes up for those that are 0."""
    drawn = torch.rand(*maps.shape[:2], 1, 1, generator=generator)
    return (drawn >= share).to(maps.dtype) / (1 - share)


def _draw_noise(maps: Tensor, relative: float, generator: torch.Generator) -> Tensor:
    """(n, C, h, w)"""
    if maps.device != generator.device:
        seed = draw_number(0, _LARGEST_SEED, generator)
        generator = torch.Generator(maps.device).manual_seed(seed)
    noise = torch.randn(maps.shape, generator=generator, device=maps.device, dtype=maps.dtype)
    scale = maps.square().mean(dim=(2, 3), keepdim=True).sqrt()
    return noise.mul_(scale.mul_(relative))

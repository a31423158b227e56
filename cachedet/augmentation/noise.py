"""Augmentation of values: channel dropout, and noise as strong as the codec's own error.

Letters: n images, C channels, h w feature cells. Boxes and masks stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from cachedet.augmentation.draws import RandomDraws, draw_number
from cachedet.structures import Batch

_LARGEST_SEED = 2**62


def channel_dropout(batch: Batch, draws: RandomDraws, *, share: float) -> Batch:
    """Zero this share of the channels of each image and level, scale the others up.

    Dropout (arXiv 1207.0580) of whole channels (arXiv 1411.4280): a single cell would be given
    away by its neighbours. The expected value of every cell stays what it was.
    """
    return replace(
        batch,
        features={
            level: maps * _draw_kept(maps, share, draws).to(maps.device)
            for level, maps in batch.features.items()
        },
    )


def add_noise(batch: Batch, draws: RandomDraws, *, relative: Mapping[str, float]) -> Batch:
    """Gaussian noise, in each channel of each image in proportion to its root mean square.

    Args:
        batch: n images.
        draws: of the batch; noise on an accelerator comes from generators there, seeded by these,
            so it is the same on the same kind of device.
        relative: standard deviation by level, as a share of a channel's root mean square.
    """
    return replace(
        batch,
        features={
            level: maps + _draw_noise(maps, relative[level], draws)
            for level, maps in batch.features.items()
        },
    )


def _draw_kept(maps: Tensor, share: float, draws: RandomDraws) -> Tensor:
    """(n, C, 1, 1): 0, or what makes up for those that are 0."""
    drawn = torch.stack(
        [torch.rand(maps.shape[1], 1, 1, generator=draws.of_image(n)) for n in range(len(maps))]
    )
    return (drawn >= share).to(maps.dtype) / (1 - share)


def _draw_noise(maps: Tensor, relative: float, draws: RandomDraws) -> Tensor:
    """(n, C, h, w)"""
    noise = torch.empty(maps.shape, device=maps.device, dtype=maps.dtype)
    for image, own in enumerate(noise):
        own.normal_(generator=_generator_on(maps.device, draws.of_image(image)))
    scale = maps.square().mean(dim=(2, 3), keepdim=True).sqrt()
    return noise.mul_(scale.mul_(relative))


def _generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """The generator itself, or one there that it seeds."""
    if device == generator.device:
        return generator
    return torch.Generator(device).manual_seed(draw_number(0, _LARGEST_SEED, generator))

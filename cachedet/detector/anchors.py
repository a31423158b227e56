"""Anchors: the boxes a dense head starts from.

Letters: L levels, A anchors per cell, h w cells of a level, T anchors of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cachedet.structures import Features

_CACHED_SHAPES = 64  # a store has few buckets, so few combinations of map shapes occur


class AnchorGenerator:
    """Reference boxes for each cell of each level (PAPER 2.2, RetinaNet arXiv 1708.02002 4)."""

    def __init__(
        self,
        *,
        strides: Sequence[int],  # of the levels, fine to coarse
        size_factor: float,  # side of the smallest square anchor, in strides of its level
        scales_per_octave: int,  # sizes between one level and the next
        aspect_ratios: Sequence[float],  # height / width
    ) -> None:
        self.strides = tuple(strides)
        self.num_anchors = scales_per_octave * len(aspect_ratios)
        scales = [size_factor * 2 ** (i / scales_per_octave) for i in range(scales_per_octave)]
        shapes_hw = [(s * ratio**0.5, s / ratio**0.5) for s in scales for ratio in aspect_ratios]
        self._shapes_hw = torch.tensor(shapes_hw, dtype=torch.float64)
        self._cache: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, features: Features) -> Tensor:
        """Anchors (T, 4) for these maps: levels fine to coarse, cells row by row, A per cell."""
        maps = list(features.values())
        key = (*(tuple(level.shape[-2:]) for level in maps), maps[0].device)
        if key not in self._cache:
            if len(self._cache) >= _CACHED_SHAPES:
                self._cache.clear()
            self._cache[key] = self.make(features)
        return self._cache[key]

    def make(self, features: Features) -> Tensor:
        """The same, anew: for graphs, where the sides of maps are no numbers yet."""
        maps = list(features.values())
        anchors = [
            self._of_level(level.shape[-2], level.shape[-1], stride)
            for level, stride in zip(maps, self.strides, strict=True)
        ]
        return torch.cat(anchors).float().to(maps[0].device)

    def _of_level(self, height: int, width: int, stride: int) -> Tensor:
        """(h * w * A, 4), centred on the cells."""
        center_y = (torch.arange(height, dtype=torch.float64) + 0.5) * stride
        center_x = (torch.arange(width, dtype=torch.float64) + 0.5) * stride
        grid_y, grid_x = torch.meshgrid(center_y, center_x, indexing="ij")
        centers = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1)
        half_hw = self._shapes_hw * stride / 2
        corners = torch.stack([-half_hw[:, 1], -half_hw[:, 0], half_hw[:, 1], half_hw[:, 0]], -1)
        return (centers[:, :, None] + corners).reshape(height * width * self.num_anchors, 4)

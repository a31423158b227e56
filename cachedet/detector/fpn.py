"""The feature pyramid network: from a backbone's C levels to the P levels the heads work on.

Letters: N images, C channels, h w feature cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cachedet.detector.layers import LayerStyle, make_conv, make_norm
from cachedet.structures import Features, FeatureSpec, LevelSpec


def pyramid_spec(strides: Sequence[int], *, channels: int) -> FeatureSpec:
    """Levels of exactly these strides, fine to coarse, each named P{round(log2(stride))}.

    A stride of 14 gives P4. Raises ValueError if two levels would share a name.
    """
    levels: dict[str, LevelSpec] = {}
    for stride in strides:
        name = f"P{round(math.log2(stride))}"
        if name in levels:
            raise ValueError(
                f"levels of strides {levels[name].stride} and {stride} would both be called "
                f"{name}; choose levels whose strides differ by a factor of 2 with "
                "detector.levels, or join maps of one stride with the neck tap_pyramid"
            )
        levels[name] = LevelSpec(name=name, channels=channels, stride=stride)
    return FeatureSpec(tuple(levels.values()))


def continued_strides(spec: FeatureSpec, *, num_levels: int) -> tuple[int, ...]:
    """Strides of `spec`, then twice the one before until there are `num_levels`."""
    strides = [level.stride for level in spec]
    while len(strides) < num_levels:
        strides.append(strides[-1] * 2)
    return tuple(strides)


def coarsen(level: Tensor, *, factor: int) -> Tensor:
    """Max-pool (N, C, h, w) -> (N, C, ceil(h / factor), ceil(w / factor)).

    Twice by 2 equals once by 4, whatever the size.
    """
    return F.max_pool2d(level, factor, stride=factor, ceil_mode=True)


class FPN(nn.Module):
    """Feature pyramid network (arXiv 1612.03144) in the form of PAPER 2.4.

    1x1 laterals, nearest top-down sum, a 3x3 convolution per level, coarser levels by stride-2
    3x3 convolutions (with an activation in front from the second on), one norm per level at the
    very end and no activation.

    Of the `num_levels` that go out, which `spec` describes, the finest has the stride of the finest
    that comes in.
    """

    def __init__(
        self, spec: FeatureSpec, *, channels: int, num_levels: int, style: LayerStyle
    ) -> None:
        super().__init__()
        self.in_names = spec.names
        self.spec = pyramid_spec(continued_strides(spec, num_levels=num_levels), channels=channels)
        if num_levels < len(spec):
            raise ValueError(
                f"num_levels must be at least the {len(spec)} levels that come in, got {num_levels}"
            )
        self.laterals = nn.ModuleList(nn.Conv2d(level.channels, channels, 1) for level in spec)
        self.outputs = nn.ModuleList(
            make_conv(channels, channels, separable=style.separable) for _ in spec
        )
        self.extras = nn.ModuleList(
            make_conv(channels, channels, stride=2, separable=style.separable)
            for _ in range(num_levels - len(spec))
        )
        self.norms = nn.ModuleList(make_norm(style.norm, channels) for _ in range(num_levels))
        self.activation = style.make_activation()

    def forward(self, features: Features) -> Features:
        """Maps of the in-levels (N, C_level, h, w) -> maps of the out-levels (N, C, h, w)."""
        merged = self._merge([features[name] for name in self.in_names])
        maps = [conv(level) for conv, level in zip(self.outputs, merged, strict=True)]
        for index, conv in enumerate(self.extras):
            maps.append(conv(self.activation(maps[-1]) if index > 0 else maps[-1]))
        normed = [norm(level) for norm, level in zip(self.norms, maps, strict=True)]
        return dict(zip(self.spec.names, normed, strict=True))

    def _merge(self, maps: Sequence[Tensor]) -> list[Tensor]:
        merged = [lateral(level) for lateral, level in zip(self.laterals, maps, strict=True)]
        for fine in range(len(merged) - 2, -1, -1):
            size = merged[fine].shape[-2:]
            merged[fine] = merged[fine] + F.interpolate(merged[fine + 1], size=size, mode="nearest")
        return merged

"""Towers: stacks of 3x3 convolutions that all levels share, in front of the predictors of a head.

Letters: N images, C channels, h w cells.
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn

from cachedet.detector.layers import LayerStyle, init_he, make_conv, make_norm


class Tower(nn.Module):
    """Convolution, norm and activation, `num_convs` times (PAPER 2.5); with 0 maps pass unchanged.

    Levels share the convolutions; each has norms of its own unless `norm_per_level` is off, since
    statistics differ between levels. Weights start from a normal distribution of `init_std`; of
    None, or where they are separable, from He's.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        num_levels: int,
        num_convs: int,
        style: LayerStyle,
        norm_per_level: bool = True,
        init_std: float | None = 0.01,
    ) -> None:
        super().__init__()
        self.out_channels = channels if num_convs else in_channels
        widths = [in_channels] + [channels] * num_convs
        self.convs = nn.ModuleList(
            make_conv(before, after, bias=style.has_bias, separable=style.separable)
            for before, after in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(make_norm(style.norm, channels) for _ in range(num_convs))
            for _ in range(num_levels if norm_per_level else 1)
        )
        self.activation = style.make_activation()
        for conv in self.convs.modules():
            if isinstance(conv, nn.Conv2d):
                # Two small factors, one of them over 9 values only, vanish beside a norm's epsilon.
                if init_std is None or style.separable:
                    init_he(conv)
                else:
                    init_normal(conv, std=init_std)

    def forward(self, level: Tensor, level_index: int = 0) -> Tensor:
        """(N, C, h, w) of level number `level_index` -> (N, out_channels, h, w)."""
        norms = cast(nn.ModuleList, self.norms[min(level_index, len(self.norms) - 1)])
        for conv, norm in zip(self.convs, norms, strict=True):
            level = self.activation(norm(conv(level)))
        return level


def init_normal(layer: nn.Conv2d | nn.Linear, *, std: float) -> None:
    """Normal weights and zero biases."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def per_anchor(maps: Tensor, values: int) -> Tensor:
    """Predictor maps (N, A * values, h, w) -> (N, h * w * A, values), in the order of anchors."""
    n, channels, height, width = maps.shape
    anchors = channels // values
    maps = maps.reshape(n, anchors, values, height, width).permute(0, 3, 4, 1, 2)
    return full_precision(maps.reshape(n, height * width * anchors, values))


def full_precision(predicted: Tensor) -> Tensor:
    """What autocast computed in 16 bits as float32: losses and boxes need the digits."""
    return predicted.float() if predicted.dtype in (torch.float16, torch.bfloat16) else predicted

"""Towers: stacks of 3x3 convolutions that all levels share, in front of the predictors of a head.

Letters: N images, C channels, h w cells.
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn

from cachedet.config.detector import Activation, Norm
from cachedet.detector.layers import (
    ACTIVATIONS,
    init_he,
    make_conv,
    make_norm,
)


class Tower(nn.Module):
    """Convolution, norm and activation, `num_convs` times (PAPER 2.5).

    Args:
        in_channels: of the maps that come in.
        channels: of every convolution's output.
        num_levels: that share the convolutions.
        num_convs: depth; with 0 the maps pass unchanged.
        norm, activation: names, see layers.py.
        separable: depthwise-separable convolutions.
        norm_per_level: every level has norms of its own (statistics differ between levels).
        init_std: of the convolutions' normal initial weights; None, or separable: He, fan-out.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        num_levels: int,
        num_convs: int,
        norm: Norm,
        activation: Activation,
        separable: bool,
        norm_per_level: bool = True,
        init_std: float | None = 0.01,
    ) -> None:
        super().__init__()
        self.out_channels = channels if num_convs else in_channels
        widths = [in_channels] + [channels] * num_convs
        self.convs = nn.ModuleList(
            make_conv(before, after, bias=norm == "none", separable=separable)
            for before, after in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(make_norm(norm, channels) for _ in range(num_convs))
            for _ in range(num_levels if norm_per_level else 1)
        )
        self.activation = ACTIVATIONS[activation]()
        for conv in self.convs.modules():
            if isinstance(conv, nn.Conv2d):
                # Two small factors, one of them over 9 values only, vanish beside a norm's epsilon.
                if init_std is None or separable:
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
    n, _, height, width = maps.shape
    maps = maps.reshape(n, -1, values, height, width).permute(0, 3, 4, 1, 2)
    return full_precision(maps.reshape(n, -1, values))


def full_precision(predicted: Tensor) -> Tensor:
    """What autocast computed in 16 bits as float32: losses and boxes need the digits."""
    return predicted.float() if predicted.dtype in (torch.float16, torch.bfloat16) else predicted

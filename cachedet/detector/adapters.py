"""Adapters: one small residual module on each cached level, in front of the neck.

The residual adapters of PAPER 1.8 follow Rebuffi et al. (arXiv 1705.08045), whose sit between the
layers of a frozen network: they change the features themselves, which then cannot be cached. Ours
sit behind the frozen backbone, so they adapt what is cached and cost no pass through it.

Letters: N images, C channels, h w feature cells.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from cachedet.detector.layers import LayerStyle, make_conv, make_norm
from cachedet.structures import Features, FeatureSpec

AdapterKind = Literal["pointwise", "bottleneck"]

_CHANNEL_STEP = 8  # hidden widths are multiples of it, for tensor cores and GroupNorm


class Adapters(nn.Module):
    """Adds to each level a correction that starts as zero, so that training starts from the cache.

    Levels that are not in `spec` are dropped. "pointwise" adds one 1x1 convolution of the level;
    "bottleneck" adds 1x1 to fewer channels (`hidden_channels` of them), 3x3, 1x1 back, with norm
    and activation behind the first two.
    """

    def __init__(
        self, spec: FeatureSpec, *, kind: AdapterKind, ratio: float, style: LayerStyle
    ) -> None:
        super().__init__()
        self.spec = spec
        self.corrections = nn.ModuleList(
            _zeroed_conv(level.channels, level.channels)
            if kind == "pointwise"
            else _make_bottleneck(level.channels, ratio, style)
            for level in spec
        )

    def forward(self, features: Features) -> Features:
        """Maps (N, C_level, h, w) -> the same names and shapes, in the order of `spec`."""
        adapted: Features = {}
        for name, correction in zip(self.spec.names, self.corrections, strict=True):
            level: Tensor = features[name]
            adapted[name] = level + correction(level)
        return adapted


def hidden_channels(channels: int, *, ratio: float) -> int:
    """The multiple of 8 nearest to channels * ratio, at least 8."""
    return max(1, round(channels * ratio / _CHANNEL_STEP)) * _CHANNEL_STEP


def _make_bottleneck(channels: int, ratio: float, style: LayerStyle) -> nn.Sequential:
    hidden = hidden_channels(channels, ratio=ratio)
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1, bias=style.has_bias),
        make_norm(style.norm, hidden),
        style.make_activation(),
        make_conv(hidden, hidden, bias=style.has_bias),
        make_norm(style.norm, hidden),
        style.make_activation(),
        _zeroed_conv(hidden, channels),
    )


def _zeroed_conv(in_channels: int, out_channels: int) -> nn.Module:
    conv = nn.Conv2d(in_channels, out_channels, 1)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv

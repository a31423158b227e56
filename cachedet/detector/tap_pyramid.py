"""A pyramid from taps: several maps of one stride joined, then brought to other strides.

ViTDet (arXiv 2203.16527) shows that a pyramid needs no other strides to come in, ViT-Split
(arXiv 2506.03433) that maps of several frozen blocks tell more than the last alone.

Letters: N images, C channels of each tap, c of the neck, h w feature cells, s the taps' stride.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cachedet.config.detector import Join
from cachedet.detector.fpn import FPN, coarsen, pyramid_spec
from cachedet.detector.layers import LayerStyle, make_conv, make_norm
from cachedet.detector.nasfpn import NASFPN
from cachedet.structures import Features, FeatureSpec


class TapPyramid(nn.Module):
    """Levels of strides s/2, s, 2s, 4s ... from maps of stride s.

    Taps are joined to c channels by a 1x1 convolution, norm and activation: "concatenate" joins
    them once, side by side; "weighted" joins them anew for each level that goes out, as a mean by
    weights that are learnt (a softmax over the taps, equal at first). What is joined becomes the
    finer level by a transposed 2x2 convolution and the coarser ones by max-pooling; a 3x3
    convolution and a norm end each. `spec` describes the levels that go out.

    Raises ValueError where the maps are not of one stride, which can be halved, or of unequal
    channels where they are weighted.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        *,
        channels: int,
        num_levels: int,
        join: Join,
        style: LayerStyle,
    ) -> None:
        super().__init__()
        stride = _only_stride(spec)
        self.in_names = spec.names
        self.spec = pyramid_spec(
            [stride * 2**index // 2 for index in range(num_levels)], channels=channels
        )
        self.join = (
            _Concatenate(spec, channels=channels, style=style)
            if join == "concatenate"
            else _Weigh(spec, channels=channels, num_levels=num_levels, style=style)
        )
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                make_conv(channels, channels, bias=style.has_bias, separable=style.separable),
                make_norm(style.norm, channels),
            )
            for _ in range(num_levels)
        )

    def forward(self, features: Features) -> Features:
        """(N, C, h, w) of each tap -> (N, c, 2h, 2w), (N, c, h, w), (N, c, ceil(h/2), ...) ..."""
        joined = self.join([features[name] for name in self.in_names])
        if len(joined) == 1:
            joined *= len(self.blocks)
        maps = [
            block(self._at(level, index))
            for index, (block, level) in enumerate(zip(self.blocks, joined, strict=True))
        ]
        return dict(zip(self.spec.names, maps, strict=True))

    def _at(self, level: Tensor, index: int) -> Tensor:
        """The map at the stride of out-level number `index`."""
        if index == 0:
            finer: Tensor = self.upsample(level)
            return finer
        return coarsen(level, factor=2 ** (index - 1)) if index > 1 else level


class StackedNeck(nn.Module):
    """A neck on the levels that another one gives; `spec` describes those that go out."""

    def __init__(self, below: TapPyramid, top: FPN | NASFPN) -> None:
        super().__init__()
        self.below, self.top = below, top
        self.spec = top.spec

    def forward(self, features: Features) -> Features:
        """Maps of the in-levels -> maps of the out-levels."""
        levels: Features = self.top(self.below(features))
        return levels


class _Concatenate(nn.Module):
    """All taps side by side, and one map of them."""

    def __init__(self, spec: FeatureSpec, *, channels: int, style: LayerStyle) -> None:
        super().__init__()
        self.reduce = _make_reduction(sum(level.channels for level in spec), channels, style)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [self.reduce(torch.cat(list(maps), dim=1))]


class _Weigh(nn.Module):
    """A weighted mean of the taps for each level that goes out."""

    def __init__(
        self, spec: FeatureSpec, *, channels: int, num_levels: int, style: LayerStyle
    ) -> None:
        super().__init__()
        if len({level.channels for level in spec}) > 1:
            raise ValueError(
                f"TapPyramid weighs maps of as many channels each, got {_listed(spec)}; take join: "
                "concatenate, or choose maps of one network with detector.levels"
            )
        self.logits = nn.Parameter(torch.zeros(num_levels, len(spec)))
        self.reductions = nn.ModuleList(
            _make_reduction(spec.levels[0].channels, channels, style) for _ in range(num_levels)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        shares = self.logits.softmax(dim=1)
        return [
            reduce(_mean_of(maps, of_level))
            for reduce, of_level in zip(self.reductions, shares, strict=True)
        ]


def _mean_of(maps: Sequence[Tensor], shares: Tensor) -> Tensor:
    mean = maps[0] * shares[0]
    for level, share in zip(maps[1:], shares[1:], strict=True):
        mean = torch.addcmul(mean, level, share)
    return mean


def _make_reduction(in_channels: int, channels: int, style: LayerStyle) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1, bias=style.has_bias),
        make_norm(style.norm, channels),
        style.make_activation(),
    )


def _only_stride(spec: FeatureSpec) -> int:
    strides = sorted({level.stride for level in spec})
    if len(strides) > 1:
        raise ValueError(
            f"TapPyramid joins maps of one stride, got {_listed(spec)}; extract a plain ViT with "
            "--taps 4, choose maps of one stride with detector.levels, or take another neck, such "
            "as fpn"
        )
    if strides[0] % 2:
        raise ValueError(
            "TapPyramid's finest level has half the stride of those that come in, which must be "
            f"even, got {_listed(spec)}"
        )
    return strides[0]


def _listed(spec: FeatureSpec) -> str:
    return ", ".join(
        f"{level.name} ({level.channels} channels, stride {level.stride})" for level in spec
    )

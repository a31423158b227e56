"""Simple feature pyramid of ViTDet (arXiv 2203.16527, section 3), for plain ViTs.

Letters: N images, C channels, h w feature cells, s the stride of the level that comes in.
"""

from __future__ import annotations

from torch import Tensor, nn

from cachedet.config.detector import Norm
from cachedet.detector.fpn import coarsen, pyramid_spec
from cachedet.detector.layers import make_conv, make_norm
from cachedet.structures import Features, FeatureSpec, LevelSpec


class SimplePyramid(nn.Module):
    """Levels of strides s/2, s, 2s, 4s ... from the one map a plain ViT gives.

    The map is brought to each stride by itself, there is no top-down path: s/2 by a transposed
    2x2 convolution to half the channels, s as it is, coarser ones by max-pooling. Each is followed
    by a 1x1 convolution, norm, 3x3 convolution, norm. Differences from ViTDet: its norm is a
    LayerNorm over channels, ours one of `make_norm` ("group" is the nearest); it starts at s/4;
    its coarsest level (P6) subsamples the finished level before it, ours pools the map that comes
    in and has convolutions of its own. `spec` describes the levels that go out.

    Raises ValueError if several levels come in or the stride cannot be halved.
    """

    def __init__(self, spec: FeatureSpec, *, channels: int, num_levels: int, norm: Norm) -> None:
        super().__init__()
        level = _only_level(spec)
        self.in_name = level.name
        strides = [level.stride * 2**index // 2 for index in range(num_levels)]
        self.spec = pyramid_spec(strides, channels=channels)
        finest = (level.channels + 1) // 2
        self.upsample = nn.ConvTranspose2d(level.channels, finest, 2, stride=2)
        self.branches = nn.ModuleList(
            _make_branch(level.channels if index > 0 else finest, channels, norm)
            for index in range(num_levels)
        )

    def forward(self, features: Features) -> Features:
        """(N, C_level, h, w) -> (N, C, 2h, 2w), (N, C, h, w), (N, C, ceil(h/2), ceil(w/2)) ..."""
        level = features[self.in_name]
        maps = [branch(self._at(level, index)) for index, branch in enumerate(self.branches)]
        return dict(zip(self.spec.names, maps, strict=True))

    def _at(self, level: Tensor, index: int) -> Tensor:
        """The map at the stride of out-level number `index`."""
        if index == 0:
            finer: Tensor = self.upsample(level)
            return finer
        return coarsen(level, factor=2 ** (index - 1)) if index > 1 else level


def _make_branch(in_channels: int, channels: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(
        make_conv(in_channels, channels, kernel=1, bias=norm == "none"),
        make_norm(norm, channels),
        make_conv(channels, channels, bias=norm == "none"),
        make_norm(norm, channels),
    )


def _only_level(spec: FeatureSpec) -> LevelSpec:
    if len(spec) > 1:
        raise ValueError(
            f"SimplePyramid takes one level, got {', '.join(spec.names)}; "
            "choose one with detector.levels, or join them with the neck tap_pyramid"
        )
    level = spec.levels[0]
    if level.stride % 2:
        raise ValueError(
            f"SimplePyramid's finest level has half the stride of the one that comes in, which "
            f"must be even, got {level.name} of stride {level.stride}; choose another level with "
            "detector.levels or another neck"
        )
    return level

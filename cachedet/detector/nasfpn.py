"""NAS-FPN (arXiv 1904.07392) with the numbers of PAPER 2.3.

Letters: N images, C channels, h w feature cells. `level` counts levels from the finest, 0..4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from cachedet.detector.fpn import coarsen, continued_strides, pyramid_spec
from cachedet.detector.layers import LayerStyle, init_he, make_conv, make_norm
from cachedet.structures import Features, FeatureSpec, SizeHW

NUM_LEVELS = 5


class Node(NamedTuple):
    """A map made from two others; maps 0..4 are those that come in, nodes count on from 5."""

    level: int
    op: Literal["sum", "attention"]
    inputs: tuple[int, int]
    joined: tuple[int, ...] = ()  # incoming maps of this level that no node before has used
    is_output: bool = True


NODES = (
    Node(1, "attention", (1, 3), is_output=False),
    Node(1, "sum", (1, 5), is_output=False),
    Node(0, "sum", (0, 6)),
    Node(1, "sum", (6, 7)),
    Node(2, "attention", (7, 8), joined=(2,)),
    Node(4, "attention", (6, 9), joined=(4,)),
    Node(3, "attention", (9, 10)),
)


class NASFPN(nn.Module):
    """Searched feature pyramid: the same merging cell several times over, always on 5 levels.

    Levels that come in get a 1x1 convolution and a norm; coarser ones that are missing are pooled
    from the level before. With a finest stride of 8 the levels are P3 to P7. Each repeat of the
    cell has its own weights. `spec` describes the 5 levels that go out.

    Raises ValueError where more than 5 levels come in, or one not of twice the stride before it.
    """

    def __init__(
        self, spec: FeatureSpec, *, channels: int, repeats: int, style: LayerStyle
    ) -> None:
        super().__init__()
        _check_consecutive(spec)
        self.in_names = spec.names
        strides = continued_strides(spec, num_levels=NUM_LEVELS)
        self.spec = pyramid_spec(strides, channels=channels)
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(level.channels, channels, 1), make_norm(style.norm, channels))
            for level in spec
        )
        self.cells = nn.ModuleList(_Cell(channels, style) for _ in range(repeats))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_he(module)

    def forward(self, features: Features) -> Features:
        """Maps of the in-levels (N, C_level, h, w) -> 5 maps (N, C, h, w), sides halved up."""
        maps = [
            lateral(features[name])
            for lateral, name in zip(self.laterals, self.in_names, strict=True)
        ]
        while len(maps) < NUM_LEVELS:
            maps.append(coarsen(maps[-1], factor=2))
        for cell in self.cells:
            maps = cell(maps)
        return dict(zip(self.spec.names, maps, strict=True))


class _Cell(nn.Module):
    """One repeat: 7 merging nodes, each followed by activation, 3x3 convolution and norm."""

    def __init__(self, channels: int, style: LayerStyle) -> None:
        super().__init__()
        self.activation = style.make_activation()
        self.convs = nn.ModuleList(
            make_conv(channels, channels, separable=style.separable) for _ in NODES
        )
        self.norms = nn.ModuleList(make_norm(style.norm, channels) for _ in NODES)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """5 maps (N, C, h, w), fine to coarse -> 5 of the same shapes."""
        made = list(maps)
        levels = list(range(NUM_LEVELS))
        sizes = [cast(SizeHW, tuple(level.shape[-2:])) for level in maps]
        outputs: dict[int, Tensor] = {}
        for node, conv, norm in zip(NODES, self.convs, self.norms, strict=True):
            merged = _merge(node, made, levels, sizes[node.level])
            made.append(norm(conv(self.activation(merged))))
            levels.append(node.level)
            if node.is_output:
                outputs[node.level] = made[-1]
        return [outputs[level] for level in range(NUM_LEVELS)]


def _merge(node: Node, made: Sequence[Tensor], levels: Sequence[int], size_hw: SizeHW) -> Tensor:
    first, second = (
        _resample(made[index], steps=node.level - levels[index], size_hw=size_hw)
        for index in node.inputs
    )
    if node.op == "sum":
        merged = first + second
    elif levels[node.inputs[0]] >= levels[node.inputs[1]]:
        merged = _attend(first, second)
    else:
        merged = _attend(second, first)
    for index in node.joined:
        merged = merged + made[index]
    return merged


def _attend(coarse: Tensor, fine: Tensor) -> Tensor:
    """Global attention: `coarse` plus the channels of `fine` that its largest values let pass."""
    return coarse + fine * coarse.amax(dim=(-2, -1), keepdim=True).sigmoid()


def _resample(level: Tensor, *, steps: int, size_hw: SizeHW) -> Tensor:
    """Move (N, C, h, w) by `steps` levels, coarser if positive, and crop to `size_hw`."""
    if steps > 0:
        level = coarsen(level, factor=2**steps)
    if steps < 0:
        level = F.interpolate(level, scale_factor=float(2**-steps), mode="nearest")
    cropped = level[..., : size_hw[0], : size_hw[1]]
    return cropped.view(*level.shape[:2], *size_hw)  # said once more, for exporters


def _check_consecutive(spec: FeatureSpec) -> None:
    strides = [level.stride for level in spec]
    doubled = [strides[0] * 2**level for level in range(len(strides))]
    if len(strides) > NUM_LEVELS or strides != doubled:
        came = ", ".join(f"{level.name} (stride {level.stride})" for level in spec)
        raise ValueError(
            f"NASFPN takes 1 to {NUM_LEVELS} levels, each of twice the stride before it, "
            f"got {came}; choose such levels with detector.levels, or join maps of one stride with "
            "the neck tap_pyramid"
        )

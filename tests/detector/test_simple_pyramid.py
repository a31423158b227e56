from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cachedet.config.detector import Norm
from cachedet.detector.simple_pyramid import SimplePyramid
from cachedet.structures import FeatureSpec, LevelSpec


def make_spec(stride: int, *, channels: int = 6) -> FeatureSpec:
    return FeatureSpec((LevelSpec(name="C4", channels=channels, stride=stride),))


def make_neck(spec: FeatureSpec, **changes: Any) -> SimplePyramid:
    return SimplePyramid(spec, **({"channels": 16, "num_levels": 4, "norm": "group"} | changes))


@pytest.mark.parametrize(
    ("stride", "num_levels", "strides"),
    [(14, 4, [7, 14, 28, 56]), (16, 4, [8, 16, 32, 64]), (16, 2, [8, 16]), (16, 1, [8])],
)
def test_strides_are_exact(stride: int, num_levels: int, strides: list[int]) -> None:
    neck = make_neck(make_spec(stride), channels=8, num_levels=num_levels)
    assert [level.stride for level in neck.spec] == strides
    assert neck.spec.names == ("P3", "P4", "P5", "P6")[:num_levels]


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [
        ((8, 12), [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]),
        ((9, 7), [(18, 14), (9, 7), (5, 4), (3, 2), (2, 1)]),
        ((1, 1), [(2, 2), (1, 1), (1, 1), (1, 1), (1, 1)]),
    ],
)
def test_shapes(size_hw: tuple[int, int], expected: list[tuple[int, int]], norm: Norm) -> None:
    neck = make_neck(make_spec(14), num_levels=5, norm=norm)
    found = neck({"C4": torch.randn(1, 6, *size_hw), "C5": torch.randn(1)})
    assert [(level.shape[1], *level.shape[-2:]) for level in found.values()] == [
        (16, *size) for size in expected
    ]
    assert all(level.isfinite().all() for level in found.values())


def test_against_plain_code() -> None:
    neck = make_neck(make_spec(16, channels=3), channels=4, norm="none").double()
    level = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    doubled = torch.zeros(2, 2, 10, 14, dtype=torch.float64)
    for y in range(2):
        for x in range(2):
            mixed = torch.einsum("nchw,co->nohw", level, neck.upsample.weight[:, :, y, x])
            doubled[:, :, y::2, x::2] = mixed + neck.upsample.bias[:, None, None]
    walled = F.pad(level, (0, 1, 0, 3), value=-torch.inf)
    halved = walled[:, :, :6].unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(-2, -1))
    quartered = walled.unfold(2, 4, 4).unfold(3, 4, 4).amax(dim=(-2, -1))
    found = neck({"C4": level}).values()
    for place, (at_stride, mine) in enumerate(
        zip((doubled, level, halved, quartered), found, strict=True)
    ):
        narrow, _, wide, _ = neck.branches[place]
        hidden = torch.einsum("oc,nchw->nohw", narrow.weight[:, :, 0, 0], at_stride)
        hidden = hidden + narrow.bias[:, None, None]
        expected = F.conv2d(hidden, wide.weight, wide.bias, padding=1)
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-11)


def test_parameter_count() -> None:
    neck = make_neck(make_spec(16, channels=768), channels=256)
    upsample = 768 * 384 * 4 + 384
    branches = (384 + 3 * 768) * 256 + 4 * (9 * 256 * 256 + 4 * 256)
    assert sum(parameter.numel() for parameter in neck.parameters()) == upsample + branches


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_gradient_reaches_every_parameter(norm: Norm) -> None:
    neck = make_neck(make_spec(14), norm=norm)
    found = neck({"C4": torch.randn(2, 6, 9, 7)})
    torch.stack(
        [(level * torch.randn_like(level)).sum() for level in found.values()]
    ).sum().backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_stride_that_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match="must be even, got C4 of stride 15; choose another"):
        make_neck(make_spec(15))


def test_several_levels() -> None:
    levels = (LevelSpec(name="C3", channels=4, stride=8), *make_spec(16))
    message = "takes one level, got C3, C4; choose one with detector.levels"
    with pytest.raises(ValueError, match=message):
        make_neck(FeatureSpec(levels))

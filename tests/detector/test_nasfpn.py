from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cachedet.config.detector import Activation
from cachedet.detector.layers import LayerStyle
from cachedet.detector.nasfpn import NASFPN, NODES, NUM_LEVELS
from cachedet.structures import Features, FeatureSpec, LevelSpec


def make_spec(strides: tuple[int, ...], channels: tuple[int, ...] | None = None) -> FeatureSpec:
    widths = channels or tuple(range(6, 6 + len(strides)))
    return FeatureSpec(
        tuple(
            LevelSpec(name=f"C{round(math.log2(stride))}", channels=width, stride=stride)
            for stride, width in zip(strides, widths, strict=True)
        )
    )


SPEC = make_spec((8, 16, 32))


def maps_of(spec: FeatureSpec, height: int, width: int, *, images: int = 2) -> Features:
    return {
        level.name: torch.randn(
            images, level.channels, -(-height // level.stride), -(-width // level.stride)
        )
        for level in spec
    }


def pooled(level: Tensor, factor: int) -> Tensor:
    height, width = -(-level.shape[2] // factor), -(-level.shape[3] // factor)
    result = level.new_zeros(*level.shape[:2], height, width)
    for y in range(height):
        for x in range(width):
            window = level[:, :, y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            result[:, :, y, x] = window.flatten(2).max(dim=2).values
    return result


def repeated(level: Tensor, factor: int, like: Tensor) -> Tensor:
    rows = torch.arange(like.shape[2]) // factor
    columns = torch.arange(like.shape[3]) // factor
    return level[:, :, rows][:, :, :, columns]


def gate(coarse: Tensor) -> Tensor:
    return torch.sigmoid(coarse.flatten(2).max(dim=2).values)[:, :, None, None]


def one_repeat(neck: NASFPN, maps: list[Tensor]) -> list[Tensor]:
    """PAPER 2.3's table, line by line."""
    p3, p4, p5, p6, p7 = maps
    convs = neck.cells[0].convs

    def post(merged: Tensor, node: int) -> Tensor:
        conv = convs[node - 5]
        return F.conv2d(merged.clamp(min=0), conv.weight, conv.bias, padding=1)

    p6_at_4 = repeated(p6, 4, p4)
    node5 = post(p6_at_4 + p4 * gate(p6_at_4), 5)
    node6 = post(p4 + node5, 6)
    node7 = post(p3 + repeated(node6, 2, p3), 7)
    node8 = post(node6 + pooled(node7, 2), 8)
    node8_at_5 = pooled(node8, 2)
    node9 = post(node8_at_5 + pooled(node7, 4) * gate(node8_at_5) + p5, 9)
    node9_at_7 = pooled(node9, 4)
    node10 = post(node9_at_7 + pooled(node6, 8) * gate(node9_at_7) + p7, 10)
    node10_at_6 = repeated(node10, 2, p6)
    node11 = post(node10_at_6 + pooled(node9, 2) * gate(node10_at_6), 11)
    return [node7, node8, node9, node11, node10]


def make_neck(
    spec: FeatureSpec = SPEC, *, channels: int = 8, repeats: int = 2, **changes: Any
) -> NASFPN:
    style = LayerStyle(**({"norm": "batch", "activation": "relu"} | changes))
    return NASFPN(spec, channels=channels, repeats=repeats, style=style)


@pytest.mark.parametrize(("height", "width"), [(128, 256), (8 * 9, 8 * 13), (8 * 17, 8 * 1)])
def test_one_repeat_against_the_table_by_hand(height: int, width: int) -> None:
    neck = make_neck(channels=5, repeats=1, norm="none").double()
    for parameter in neck.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    features = {name: m.double() for name, m in maps_of(SPEC, height, width).items()}
    entering = []
    for name, lateral in zip(SPEC.names, neck.laterals, strict=True):
        weight = lateral[0].weight[:, :, 0, 0]
        bias = lateral[0].bias[:, None, None]
        entering.append(torch.einsum("oc,nchw->nohw", weight, features[name]) + bias)
    entering.append(pooled(entering[-1], 2))
    entering.append(pooled(entering[-1], 2))
    expected = one_repeat(neck, entering)
    for maps, wanted in zip(neck(features).values(), expected, strict=True):
        torch.testing.assert_close(maps, wanted, rtol=1e-11, atol=1e-11)


def test_each_repeat_takes_the_maps_of_the_one_before() -> None:
    neck = make_neck(channels=4, norm="none")
    features = maps_of(SPEC, 64, 64)
    twice = neck(features)
    last = neck.cells[1]
    del neck.cells[1]
    once = list(neck(features).values())
    for maps, wanted in zip(twice.values(), last(once), strict=True):
        torch.testing.assert_close(maps, wanted, rtol=0, atol=0)


def test_the_table_joins_exactly_the_maps_nobody_used() -> None:
    places, unused = list(range(NUM_LEVELS)), set(range(NUM_LEVELS))
    for node in NODES:
        unused -= set(node.inputs)
        left = {index for index in unused if places[index] == node.level}
        assert set(node.joined) == (left if node.is_output else set())
        unused -= left if node.is_output else set()
        unused.add(len(places))
        places.append(node.level)
    outputs = [node.level for node in NODES if node.is_output]
    assert sorted(outputs) == list(range(NUM_LEVELS))


@pytest.mark.parametrize(("height", "width"), [(256, 128), (200, 104), (100, 171), (32, 32)])
@pytest.mark.parametrize(
    ("strides", "names"),
    [
        ((8, 16, 32), ("P3", "P4", "P5", "P6", "P7")),
        ((14,), ("P4", "P5", "P6", "P7", "P8")),
        ((8, 16, 32, 64, 128), ("P3", "P4", "P5", "P6", "P7")),
        ((4, 8), ("P2", "P3", "P4", "P5", "P6")),
    ],
)
@pytest.mark.parametrize("separable", [False, True])
def test_shapes_and_spec(
    strides: tuple[int, ...], names: tuple[str, ...], height: int, width: int, separable: bool
) -> None:
    spec = make_spec(strides)
    neck = make_neck(spec, separable=separable)
    assert neck.spec.names == names
    assert [level.stride for level in neck.spec] == [strides[0] * 2**n for n in range(5)]
    pyramid = neck(maps_of(spec, height, width))
    assert tuple(pyramid) == names
    for level in neck.spec:
        expected = (2, 8, -(-height // level.stride), -(-width // level.stride))
        assert tuple(pyramid[level.name].shape) == expected


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_gradient_reaches_every_parameter(activation: Activation, separable: bool) -> None:
    neck = make_neck(norm="none", activation=activation, separable=separable)
    pyramid = neck(maps_of(SPEC, 128, 160))
    torch.stack([level.square().mean() for level in pyramid.values()]).sum().backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_parameters_of_the_papers_size() -> None:
    with torch.device("meta"):
        neck = make_neck(make_spec((8, 16, 32), (512, 1024, 2048)), channels=256, repeats=5)
    entry = (512 + 1024 + 2048 + 3) * 256
    norms = (3 + 35) * 2 * 256
    count = sum(parameter.numel() for parameter in neck.parameters())
    assert count == entry + 35 * 590_080 + norms
    assert count / 1e6 == pytest.approx(21.59, abs=0.005)


@pytest.mark.parametrize(
    ("separable", "index", "std"),
    [(False, None, (2 / (9 * 64)) ** 0.5), (True, 0, (2 / 9) ** 0.5), (True, 1, (2 / 64) ** 0.5)],
)
def test_convolutions_start_from_hes_normal(separable: bool, index: int | None, std: float) -> None:
    neck = make_neck(channels=64, separable=separable)
    convs = [conv if index is None else conv[index] for cell in neck.cells for conv in cell.convs]
    weights = torch.cat([conv.weight.flatten() for conv in convs])
    assert weights.std().item() == pytest.approx(std, rel=0.03)
    assert all(conv.bias is None or not conv.bias.any() for conv in convs)


@pytest.mark.parametrize(
    ("strides", "came"),
    [
        ((8, 32), r"got C3 \(stride 8\), C5 \(stride 32\)"),
        ((2, 4, 8, 16, 32, 64), r"got C1 \(stride 2\), .*, C6 \(stride 64\)"),
    ],
)
def test_levels_that_do_not_fit(strides: tuple[int, ...], came: str) -> None:
    message = f"1 to 5 levels, each of twice the stride.*{came}.*detector.levels"
    with pytest.raises(ValueError, match=message):
        make_neck(make_spec(strides))

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import FeaturePyramidNetwork

from cachedet.config.detector import Activation
from cachedet.detector.fpn import FPN, coarsen, continued_strides, pyramid_spec
from cachedet.detector.layers import LayerStyle
from cachedet.structures import FeatureSpec, LevelSpec

SPEC = FeatureSpec(
    tuple(
        LevelSpec(name=f"C{n}", channels=channels, stride=2**n)
        for n, channels in ((3, 6), (4, 8), (5, 10))
    )
)


def maps_of(spec: FeatureSpec, height: int, width: int) -> dict[str, torch.Tensor]:
    return {
        level.name: torch.randn(
            2, level.channels, -(-height // level.stride), -(-width // level.stride)
        )
        for level in spec
    }


def make_neck(spec: FeatureSpec = SPEC, *, num_levels: int = 5, **changes: Any) -> FPN:
    style = LayerStyle(**({"norm": "batch", "activation": "relu"} | changes))
    return FPN(spec, channels=16, num_levels=num_levels, style=style)


def test_equals_torchvision_on_the_same_weights() -> None:
    ours = make_neck(num_levels=3, norm="none")
    theirs = FeaturePyramidNetwork([6, 8, 10], 16)
    for index in range(3):
        theirs.inner_blocks[index][0].load_state_dict(ours.laterals[index].state_dict())
        theirs.layer_blocks[index][0].load_state_dict(ours.outputs[index].state_dict())
    features = maps_of(SPEC, 96, 160)
    expected = theirs(features)
    pyramid = ours(features)
    for mine, name in zip(pyramid.values(), SPEC.names, strict=True):
        torch.testing.assert_close(mine, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(96, 160), (100, 171)])
def test_shapes_and_spec(height: int, width: int) -> None:
    neck = make_neck()
    assert neck.spec.names == ("P3", "P4", "P5", "P6", "P7")
    assert [level.stride for level in neck.spec] == [8, 16, 32, 64, 128]
    pyramid = neck(maps_of(SPEC, height, width))
    for level in neck.spec:
        expected = (2, 16, -(-height // level.stride), -(-width // level.stride))
        assert tuple(pyramid[level.name].shape) == expected


def test_one_level_of_a_plain_vit_keeps_its_exact_stride() -> None:
    spec = FeatureSpec((LevelSpec(name="C4", channels=6, stride=14),))
    neck = make_neck(spec, num_levels=3, norm="group")
    assert [(level.name, level.stride) for level in neck.spec] == [
        ("P4", 14),
        ("P5", 28),
        ("P6", 56),
    ]
    assert [tuple(m.shape[-2:]) for m in neck({"C4": torch.randn(1, 6, 9, 7)}).values()] == [
        (9, 7), (5, 4), (3, 2),
    ]  # fmt: skip


def test_too_few_levels() -> None:
    with pytest.raises(ValueError, match="num_levels must be at least the 3 levels"):
        make_neck(num_levels=2)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_the_activation_stands_in_front_of_the_second_extra_level(activation: Activation) -> None:
    neck = make_neck(norm="none", activation=activation)
    levels = list(neck(maps_of(SPEC, 96, 160)).values())
    apply = {"relu": F.relu, "silu": F.silu}[activation]
    first, second = neck.extras
    torch.testing.assert_close(levels[3], first(levels[2]), rtol=0, atol=0)
    torch.testing.assert_close(levels[4], second(apply(levels[3])), rtol=0, atol=0)


def test_separable_changes_the_3x3_convolutions_only() -> None:
    neck = make_neck(norm="none", separable=True)
    laterals = (6 + 8 + 10) * 16 + 3 * 16
    separable = 5 * (9 * 16 + 16 * 16 + 16)
    assert sum(parameter.numel() for parameter in neck.parameters()) == laterals + separable
    sides = [level.shape[-1] for level in neck(maps_of(SPEC, 100, 171)).values()]
    assert sides == [22, 11, 6, 3, 2]


def test_names_of_the_weights_are_those_of_older_checkpoints() -> None:
    neck = make_neck(FeatureSpec(SPEC.levels[:1]), num_levels=2, norm="group")
    modules = ("laterals.0", "outputs.0", "extras.0", "norms.0", "norms.1")
    expected = [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]
    assert list(neck.state_dict()) == expected


@pytest.mark.parametrize(
    ("strides", "names"),
    [
        ((8, 16, 32, 64, 128), ("P3", "P4", "P5", "P6", "P7")),
        ((7, 14, 28, 56), ("P3", "P4", "P5", "P6")),
        ((8, 32), ("P3", "P5")),
    ],
)
def test_names_follow_the_strides_which_stay_exact(
    strides: tuple[int, ...], names: tuple[str, ...]
) -> None:
    spec = pyramid_spec(strides, channels=16)
    assert spec.names == names
    assert tuple(level.stride for level in spec) == strides
    assert {level.channels for level in spec} == {16}


def test_two_levels_of_one_name_are_refused() -> None:
    message = "strides 12 and 16 would both be called P4.*detector.levels"
    with pytest.raises(ValueError, match=message):
        pyramid_spec((12, 16), channels=16)


def test_missing_strides_double() -> None:
    spec = FeatureSpec(
        (LevelSpec(name="C3", channels=4, stride=7), LevelSpec(name="C4", channels=6, stride=14))
    )
    assert continued_strides(spec, num_levels=4) == (7, 14, 28, 56)
    assert continued_strides(spec, num_levels=2) == (7, 14)


@pytest.mark.parametrize("size", range(1, 34))
def test_pooling_twice_by_2_equals_once_by_4(size: int) -> None:
    level = torch.randn(1, 2, size, 9)
    once = coarsen(level, factor=4)
    assert tuple(once.shape) == (1, 2, -(-size // 4), 3)
    assert torch.equal(coarsen(coarsen(level, factor=2), factor=2), once)
    assert once[0, 0, -1, -1] == level[0, 0, (size - 1) // 4 * 4 :, 8:].max()

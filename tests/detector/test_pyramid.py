from __future__ import annotations

import pytest
import torch

from cachedet.detector.fpn import coarsen, continued_strides, pyramid_spec
from cachedet.structures import FeatureSpec, LevelSpec


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
    with pytest.raises(
        ValueError, match="strides 12 and 16 would both be called P4.*detector.levels"
    ):
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

"""A compiled backbone: how often it is compiled, what it gives, what is said where it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import cachedet
from cachedet.backbone.compiled import CompiledBackbone
from cachedet.backbone.frozen import FrozenBackbone, load_backbone
from cachedet.errors import BackboneError


class OneMap(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 4, 8, stride=8)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.layer(images)]


@pytest.fixture
def plain() -> FrozenBackbone:
    level = cachedet.LevelSpec(name="C3", channels=4, stride=8)
    return cachedet.wrap_backbone(OneMap(), name="mine", levels=[level])


def test_neither_a_last_batch_nor_other_sizes_are_compiled_for_again(plain: FrozenBackbone) -> None:
    """Images of a second size are the last ones it is compiled for, whatever comes."""
    compiled_for = []

    def compiler(graph: Any, inputs: list[Any]) -> Callable[..., Any]:
        compiled_for.append([each.shape for each in inputs if isinstance(each, torch.Tensor)])
        return graph.forward

    backbone = CompiledBackbone(plain, batch_size=3, compiler=compiler)
    counts = []
    sizes = ((64, 96), (64, 96), (96, 64), (32, 128), (128, 40), (80, 16), (64, 64))
    for number, size in enumerate(sizes):
        images = torch.randn(1 + 2 * number % 3, 3, *size)
        features = backbone(images)
        counts.append(len(compiled_for))
        assert features.keys() == plain(images).keys()
        torch.testing.assert_close(features["C3"], plain(images)["C3"], rtol=1e-5, atol=1e-6)
    assert counts == [1, 1, 2, 2, 2, 2, 2]


def test_without_a_compiler_it_says_what_to_do(plain: FrozenBackbone) -> None:
    def compiler(graph: Any, inputs: list[Any]) -> Callable[..., Any]:
        raise OSError("No working C++ compiler found\nin a long list")

    backbone = CompiledBackbone(plain, batch_size=1, compiler=compiler)
    with pytest.raises(
        BackboneError,
        match=r"^torch cannot compile mine here: No working C\+\+ compiler found. It needs .*"
        r"leave --compile out",
    ):
        backbone(torch.randn(1, 3, 16, 16))


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("bf16", [False, True])
def test_its_maps_are_those_of_the_network_within_rounding(name: str, bf16: bool) -> None:
    """Within what law L5 allows another batch; in bf16 no farther from float32 than the network."""
    plain = load_backbone(name, weights="none", bf16=bf16, image_size=96)
    backbone = CompiledBackbone(plain, batch_size=2)
    for size in ((96, 64), (64, 96)):
        images = torch.randn(2, 3, *size)
        features, exact = backbone(images), plain.in_float32()(images)
        for level, maps in plain(images).items():
            if bf16:
                allowed = 1.2 * (maps - exact[level]).norm()
                assert (features[level] - exact[level]).norm() <= allowed
            else:
                torch.testing.assert_close(features[level], maps, rtol=1e-5, atol=1e-5)

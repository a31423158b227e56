from __future__ import annotations

import typing

import pytest
import torch
from torch import nn

from cachedet.config.detector import Norm
from cachedet.detector.adapters import AdapterKind, Adapters, hidden_channels
from cachedet.detector.layers import LayerStyle
from cachedet.structures import Features, FeatureSpec, LevelSpec

KINDS: tuple[AdapterKind, ...] = typing.get_args(AdapterKind)
SPEC = FeatureSpec(
    (LevelSpec(name="C3", channels=40, stride=8), LevelSpec(name="C4", channels=72, stride=16))
)


def make_adapters(kind: AdapterKind, norm: Norm = "batch") -> Adapters:
    style = LayerStyle(norm=norm, activation="relu")
    return Adapters(SPEC, kind=kind, ratio=0.25, style=style)


def make_features() -> Features:
    return {
        "C5": torch.randn(2, 80, 1, 2),
        "C4": torch.randn(2, 72, 2, 4) * 30,
        "C3": torch.randn(2, 40, 4, 8).relu(),
    }


def step(adapters: Adapters, features: Features) -> dict[str, float]:
    """One SGD step on a loss that every level matters to; the largest gradient by parameter."""
    optimizer = torch.optim.SGD(adapters.parameters(), lr=0.05)
    loss = torch.stack(
        [(level - torch.randn_like(level)).square().mean() for level in adapters(features).values()]
    ).sum()
    loss.backward()
    optimizer.step()
    return {
        name: float(parameter.grad.abs().max())
        for name, parameter in adapters.named_parameters()
        if parameter.grad is not None
    }


def last_names(adapters: Adapters) -> set[str]:
    last = [c if isinstance(c, nn.Conv2d) else c[-1] for c in adapters.corrections]
    wanted = {id(parameter) for conv in last for parameter in conv.parameters()}
    return {name for name, p in adapters.named_parameters() if id(p) in wanted}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_identity(kind: AdapterKind, norm: Norm, training: bool) -> None:
    adapters = make_adapters(kind=kind, norm=norm).train(training)
    features = make_features()
    adapted = adapters(features)
    assert tuple(adapted) == ("C3", "C4")
    assert adapters.spec == SPEC
    for name, level in adapted.items():
        assert level.dtype == torch.float32
        assert torch.equal(level, features[name])


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_convolution_learns_first_and_the_others_follow(
    kind: AdapterKind, norm: Norm
) -> None:
    adapters = make_adapters(kind=kind, norm=norm)
    features = make_features()
    last = last_names(adapters)
    at_once = step(adapters, features)
    assert {name for name, size in at_once.items() if size > 0} == last
    adapters.zero_grad()
    later = step(adapters, features)
    assert {name for name, size in later.items() if size > 0} == {
        name for name, _ in adapters.named_parameters()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_levels_change_with_a_step(kind: AdapterKind) -> None:
    adapters = make_adapters(kind=kind)
    features = make_features()
    step(adapters, features)
    for name, level in adapters(features).items():
        assert level.shape == features[name].shape
        assert not torch.equal(level, features[name])


def test_parameter_counts() -> None:
    def count(adapters: Adapters) -> int:
        return sum(parameter.numel() for parameter in adapters.parameters())

    assert count(make_adapters(kind="pointwise")) == 40 * 41 + 72 * 73
    for norm, per_hidden in (("none", 1), ("batch", 2), ("group", 2)):
        expected = sum(
            2 * c * h + 9 * h * h + 2 * per_hidden * h + c for c, h in ((40, 8), (72, 16))
        )
        assert count(make_adapters(kind="bottleneck", norm=norm)) == expected


@pytest.mark.parametrize(
    ("channels", "ratio", "hidden"),
    [(4, 0.25, 8), (40, 0.25, 8), (72, 0.25, 16), (256, 0.25, 64), (768, 0.5, 384), (88, 0.25, 24)],
)
def test_hidden_channels(channels: int, ratio: float, hidden: int) -> None:
    assert hidden_channels(channels, ratio=ratio) == hidden

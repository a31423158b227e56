"""Normalisation and activation of necks and heads, chosen by name."""

from __future__ import annotations

from typing import Literal

from torch import nn

NormName = Literal["batch", "group", "none"]
ActivationName = Literal["relu", "silu"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
_GROUPS = 32


def make_norm(name: NormName, channels: int) -> nn.Module:
    """BatchNorm with the paper's momentum and epsilon (PAPER 2.2), GroupNorm, or nothing."""
    if name == "batch":
        return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)  # Keras momentum 0.99
    if name == "group":
        groups = next(g for g in range(min(_GROUPS, channels), 0, -1) if channels % g == 0)
        return nn.GroupNorm(groups, channels)
    return nn.Identity()

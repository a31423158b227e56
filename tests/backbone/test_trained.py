from __future__ import annotations

import torch
from timm.layers.norm import RmsNorm
from torch import nn

from cachedet.backbone.trained import train_norms_only


def test_norms_of_every_kind_are_trained_alone() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.LayerNorm(4), RmsNorm(4),
        nn.GroupNorm(2, 4),
    )  # fmt: skip
    train_norms_only(network)
    assert [next(module.parameters()).requires_grad for module in network] == [
        False, True, False, True, True, True,
    ]  # fmt: skip
    assert network[4](torch.ones(1, 4)).requires_grad

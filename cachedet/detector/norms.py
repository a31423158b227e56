"""Normalisation and activation of necks and heads, chosen by name."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

NormName = Literal["batch", "group", "none"]
ActivationName = Literal["relu", "silu"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
_MOST_GROUPS = 32  # GroupNorm, arXiv 1803.08494
_LEAST_GROUP = 4  # channels; a group of one would be flattened on maps of a single cell


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm that also takes a lone picture whose coarsest map is a single cell.

    One value per channel has no variance, and no value at all (no RoI was sampled) no mean either;
    the running statistics are then used and stay as they are.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, h, w) -> the same shape."""
        if self.training and maps.numel() <= maps.shape[1]:
            return F.batch_norm(
                maps, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(maps)


def make_norm(name: NormName, channels: int) -> nn.Module:
    """BatchNorm with the paper's momentum and epsilon (PAPER 2.2), GroupNorm, or nothing."""
    if name == "batch":
        return BatchNorm(channels, eps=1e-3, momentum=0.01)  # Keras momentum 0.99
    if name == "group":
        most = max(1, min(_MOST_GROUPS, channels // _LEAST_GROUP))
        groups = next(g for g in range(most, 0, -1) if channels % g == 0)
        return nn.GroupNorm(groups, channels)
    return nn.Identity()

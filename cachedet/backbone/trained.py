"""A backbone that learns, whole or in part: which of its weights move."""

from __future__ import annotations

from typing import Literal

from timm.layers.norm import RmsNorm, RmsNormFp32
from torch import Tensor, nn

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.structures import Features

BatchNorm = Literal["frozen", "trained"]
_NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, RmsNorm, RmsNormFp32)


class TrainedBackbone(nn.Module):
    """Takes over the network of `frozen`, which is not frozen any more, with gradients.

    With `batch_norm` "frozen" the statistics, weights and biases of batch norms stay as they are,
    as in detectors with small batches; "trained" learns them. Other norms always learn.
    """

    def __init__(self, frozen: FrozenBackbone, *, batch_norm: BatchNorm) -> None:
        super().__init__()
        self.spec = frozen.spec
        self.network = frozen.model.requires_grad_(True)
        self._name_maps = frozen.name_maps
        if batch_norm == "frozen":
            freeze_batch_norms(self.network)

    def forward(self, images: Tensor) -> Features:
        """(N, 3, H, W) normalised, sides multiples of `spec.pad_multiple` -> maps (N, C, h, w)."""
        return self._name_maps(self.network(images), images)


def freeze_batch_norms(network: nn.Module) -> None:
    """Keep weights and biases of batch norms; `set_training_mode` then keeps their statistics."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)


def train_norms_only(network: nn.Module) -> None:
    """Keep everything but the weights and biases of norms, batch norms and others."""
    network.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, _NORMS):
            module.requires_grad_(True)

"""A backbone that learns: fine-tuned, or from random weights."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.structures import Features

BatchNorm = Literal["frozen", "trained"]


class TrainedBackbone(nn.Module):
    """Takes over the network of a frozen backbone, with gradients.

    Args:
        frozen: whose network it becomes; not to be used as a frozen one any more.
        batch_norm: "frozen" keeps the statistics, weights and biases of batch norms as they are,
            as detectors with small batches do; "trained" learns them. Other norms always learn.
    """

    def __init__(self, frozen: FrozenBackbone, *, batch_norm: BatchNorm) -> None:
        super().__init__()
        self.spec = frozen.spec
        self.network = frozen.model.requires_grad_(True)
        self._name_maps = frozen.name_maps
        if batch_norm == "frozen":
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.requires_grad_(False)  # set_training_mode keeps their statistics too

    def forward(self, images: Tensor) -> Features:
        """(N, 3, H, W) normalised, sides multiples of `spec.pad_multiple` -> maps (N, C, h, w)."""
        return self._name_maps(self.network(images), images)

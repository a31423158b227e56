"""A backbone that learns: fine-tuned, or from random weights."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.structures import Features

BatchNorm = Literal["frozen", "trained"]


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
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.requires_grad_(False)  # set_training_mode keeps their statistics too

    def forward(self, images: Tensor) -> Features:
        """(N, 3, H, W) normalised, sides multiples of `spec.pad_multiple` -> maps (N, C, h, w)."""
        return self._name_maps(self.network(images), images)

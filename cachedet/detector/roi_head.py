"""The RoI head: classes and boxes of pooled RoIs (PAPER 2.5), one stage of a cascade.

Letters: R RoIs of all images, C channels, S cells of a RoI's side, K classes.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from cachedet.detector.layers import LayerStyle, make_norm
from cachedet.detector.towers import Tower, full_precision, init_normal


class RoIHead(nn.Module):
    """Convolutions, then fully connected layers, then the two predictors.

    Background is the last of the class logits, one more than `num_classes`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        resolution: int,  # S, cells of a RoI's side
        num_classes: int,
        class_agnostic: bool,  # one box for a RoI instead of one for each class
        num_convs: int,
        conv_channels: int,
        num_fcs: int,
        fc_channels: int,
        style: LayerStyle,
    ) -> None:
        super().__init__()
        self.tower = Tower(
            in_channels=in_channels,
            channels=conv_channels,
            num_levels=1,
            num_convs=num_convs,
            style=style,
            init_std=None,
        )
        widths = [self.tower.out_channels * resolution**2] + [fc_channels] * num_fcs
        self.fcs = nn.ModuleList(
            _FullyConnected(before, after, style) for before, after in itertools.pairwise(widths)
        )
        self.boxes_per_roi = 1 if class_agnostic else num_classes
        self.class_logits = nn.Linear(widths[-1], num_classes + 1)
        self.box_deltas = nn.Linear(widths[-1], self.boxes_per_roi * 4)
        init_normal(self.class_logits, std=0.01)
        init_normal(self.box_deltas, std=0.001)

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C, S, S) -> logits (R, K + 1) and deltas (R, 1 or K, 4)."""
        flat = self.tower(cells).flatten(1)
        for layer in self.fcs:
            flat = layer(flat)
        deltas = self.box_deltas(flat).view(flat.shape[0], self.boxes_per_roi, 4)
        return full_precision(self.class_logits(flat)), full_precision(deltas)


class _FullyConnected(nn.Module):
    def __init__(self, before: int, after: int, style: LayerStyle) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after, bias=style.has_bias)
        self.norm = make_norm(style.norm, after)
        self.activation = style.make_activation()
        nn.init.kaiming_normal_(self.linear.weight, mode="fan_out", nonlinearity="relu")
        if self.linear.bias is not None:
            nn.init.zeros_(self.linear.bias)

    def forward(self, flat: Tensor) -> Tensor:
        """(R, before) -> (R, after); each row is a map of one cell to its norm."""
        maps = self.linear(flat)[:, :, None, None]
        activated: Tensor = self.activation(self.norm(maps)).flatten(1)
        return activated


def class_deltas(deltas: Tensor, labels: Tensor) -> Tensor:
    """(R, 1 or K, 4) -> (R, 4): those of each RoI's class, or the only ones."""
    if deltas.shape[1] == 1:
        return deltas[:, 0]
    rows = torch.arange(len(deltas), device=deltas.device)
    return deltas[rows, labels.clamp(min=0, max=deltas.shape[1] - 1)]

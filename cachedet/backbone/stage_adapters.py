"""Residual adapters inside the stages of a network that are trained (PAPER 1.8).

One 1x1 convolution behind each block, added to what the block gives: Rebuffi et al., arXiv
1705.08045. They start as zero, so training starts from the network as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from cachedet.backbone.split import Stages

_CELLS = 16  # of the side of the map by which channels are found; windows of 7 fit in


class AdaptedBlock(nn.Module):
    """A block and the correction of its output."""

    def __init__(self, block: nn.Module, *, channels: int, is_nhwc: bool) -> None:
        super().__init__()
        self.block = block
        self.adapter = (
            nn.Linear(channels, channels) if is_nhwc else nn.Conv2d(channels, channels, 1)
        )
        for parameter in self.adapter.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, h, w), or (N, h, w, C) of a network that has them so."""
        y: Tensor = self.block(x)
        correction: Tensor = self.adapter(y)
        return y + correction


def insert_adapters(stages: Stages, *, in_channels: int) -> list[nn.Module]:
    """Put an adapter behind every block of `stages`, which take `in_channels`; returns them."""
    adapted: list[nn.Module] = []
    for parent, name in list(_blocks(stages)):
        block = parent.get_submodule(name)
        channels = _channels_behind(block, stages, in_channels=in_channels)
        wrapped = AdaptedBlock(block, channels=channels, is_nhwc=stages.is_nhwc)
        parent.set_submodule(name, wrapped)
        adapted.append(wrapped.adapter)
    return adapted


def _blocks(stages: Stages) -> Iterator[tuple[nn.Module, str]]:
    """(parent, name) of each block: what a stage has in a row, or the stage where it has none."""
    for name, layer in stages.layers.items():
        row = getattr(layer, "blocks", layer)
        is_row = isinstance(row, nn.Sequential) or type(layer).__name__ == "RegStage"
        if is_row:
            yield from ((row, child) for child, _ in row.named_children())
        else:
            yield stages.layers, name


@torch.no_grad()
def _channels_behind(block: nn.Module, stages: Stages, *, in_channels: int) -> int:
    """Channels of what `block` gives, found by running the stages once."""
    shapes: list[torch.Size] = []
    hook = block.register_forward_hook(lambda _, __, output: shapes.append(output.shape))
    was_training = stages.training
    stages.eval()
    try:
        stages(torch.zeros(1, in_channels, _CELLS, _CELLS))
    finally:
        hook.remove()
        stages.train(was_training)
    return shapes[0][3 if stages.is_nhwc else 1]

"""Residual adapters inside the stages of a network that are trained (PAPER 1.8).

One 1x1 convolution (of tokens a linear layer) behind each block, added to what the block gives:
Rebuffi et al., arXiv 1705.08045. They start as zero, so training starts from the network as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from cachedet.backbone.split import Stages
from cachedet.backbone.vit import ViTBlocks

_CELLS = 16  # of the side of the map by which channels are found; windows of 7 fit in


class AdaptedBlock(nn.Module):
    """A block and the correction of its output."""

    def __init__(self, block: nn.Module, *, channels: int, channels_last: bool) -> None:
        super().__init__()
        self.block = block
        self.adapter = (
            nn.Linear(channels, channels) if channels_last else nn.Conv2d(channels, channels, 1)
        )
        for parameter in self.adapter.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        """Maps (N, C, h, w), (N, h, w, C) of a network that has them so, or tokens (N, L, C)."""
        y: Tensor = self.block(x) if rope is None else self.block(x, rope=rope)
        correction: Tensor = self.adapter(y)
        return y + correction


def insert_adapters(stages: Stages) -> list[nn.Module]:
    """Put an adapter behind every block of `stages`; returns them."""
    channels_last = stages.is_nhwc or isinstance(stages.layers, ViTBlocks)
    adapted: list[nn.Module] = []
    for parent, name in list(_blocks(stages)):
        block = parent.get_submodule(name)
        channels = _shape_behind(block, stages)[-1 if channels_last else 1]
        wrapped = AdaptedBlock(block, channels=channels, channels_last=channels_last)
        parent.set_submodule(name, wrapped)
        adapted.append(wrapped.adapter)
    return adapted


def _blocks(stages: Stages) -> Iterator[tuple[nn.Module, str]]:
    """(parent, name) of each block: what a stage has in a row, or the stage where it has none."""
    if isinstance(stages.layers, ViTBlocks):
        yield from ((stages.layers.blocks, name) for name in stages.layers.blocks)
        return
    for name, layer in stages.layers.items():
        row = getattr(layer, "blocks", layer)
        is_row = isinstance(row, nn.Sequential) or type(layer).__name__ == "RegStage"
        if is_row:
            yield from ((row, child) for child, _ in row.named_children())
        else:
            yield stages.layers, name


@torch.no_grad()
def _shape_behind(block: nn.Module, stages: Stages) -> torch.Size:
    """That of what `block` gives, found by running the stages once."""
    shapes: list[torch.Size] = []
    hook = block.register_forward_hook(lambda _, __, output: shapes.append(output.shape))
    side = (_CELLS * stages.inputs[0].stride,) * 2
    was_training = stages.training
    stages.eval()
    try:
        stages(*(torch.zeros(1, *level.shape(side)) for level in stages.inputs))
    finally:
        hook.remove()
        stages.train(was_training)
    return shapes[0]

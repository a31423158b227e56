"""Plain ViTs: their tokens behind some of their blocks, and the blocks behind those.

What a block leaves is a map of patches and, where the model has class or register tokens, a level
of these. Both together are all that the next blocks need: absolute positions are in them, rotary
ones follow from the size of the map.

Letters: N images, C channels, h w patches, T class and register tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cachedet.structures import LevelSpec

Taps = Mapping[int, bool]
"""Blocks behind which the map is taken, by index, and whether its tokens are taken with it."""


def is_plain_vit(model: object) -> bool:
    """Whether all that its blocks pass on is one row of tokens."""
    return isinstance(model, VisionTransformer | Eva)


def state_levels(model: Any, *, channels: int, stride: int) -> list[tuple[LevelSpec, ...]]:
    """What each block but the last leaves to the next: `L8` and `L8_prefix` behind the eighth."""
    states: list[tuple[LevelSpec, ...]] = []
    for number in range(1, len(model.blocks)):
        patches = LevelSpec(name=f"L{number}", channels=channels, stride=stride)
        prefix = LevelSpec(
            name=f"L{number}_prefix",
            channels=channels,
            stride=stride,
            tokens=model.num_prefix_tokens,
        )
        states.append((patches, prefix) if prefix.tokens else (patches,))
    return states


class TappedViT(nn.Module):
    """A plain ViT that gives maps from behind some of its blocks, and their tokens."""

    def __init__(self, model: nn.Module, *, taps: Taps) -> None:
        super().__init__()
        self.model: Any = model
        self.taps = dict(sorted(taps.items()))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> in the order of the blocks maps (N, C, h, w), tokens (N, C, 1, T)."""
        has_prefix = self.model.num_prefix_tokens > 0
        found = self.model.forward_intermediates(
            images,
            indices=list(self.taps),
            return_prefix_tokens=has_prefix,
            stop_early=True,
            intermediates_only=True,
        )
        levels = []
        for of_block, is_state in zip(found, self.taps.values(), strict=True):
            patches, prefix = of_block if has_prefix else (of_block, None)
            levels.append(patches)
            if is_state and prefix is not None:
                levels.append(prefix.transpose(1, 2).unsqueeze(2))
        return levels

    def cut(self, kept: int) -> tuple[TappedViT, ViTBlocks]:
        """The model up to the tap number `kept`, counted from 1, and its blocks behind that."""
        taps = list(self.taps.items())
        end = taps[kept - 1][0] + 1
        trunk = copy.copy(self.model)  # of the same modules: only their list is its own
        trunk._modules = dict(self.model._modules)
        trunk.blocks = self.model.blocks[:end]
        return (
            TappedViT(trunk, taps=dict(taps[:kept])),
            ViTBlocks(self.model, start=end, taps=dict(taps[kept:])),
        )


class ViTBlocks(nn.Module):
    """The last blocks of a plain ViT, from its state in front of them."""

    def __init__(self, model: Any, *, start: int, taps: Taps) -> None:
        super().__init__()
        numbered = list(enumerate(model.blocks))[start:]
        self.blocks = nn.ModuleDict({str(index): block for index, block in numbered})
        self.rope: Any = getattr(model, "rope", None)
        self._rope_of_block = bool(getattr(model, "rope_mixed", False))
        self._taps = dict(taps)

    def forward(self, patches: Tensor, prefix: Tensor | None = None) -> list[Tensor]:
        """Map (N, C, h, w) and tokens (N, C, 1, T) -> levels as those of `TappedViT`."""
        size_hw = patches.shape[2:]
        count = 0 if prefix is None else prefix.shape[3]
        rows = [patches] if prefix is None else [prefix, patches]
        x = torch.cat([each.flatten(2).transpose(1, 2) for each in rows], dim=1).contiguous()
        rope = None if self.rope is None else self.rope.get_embed(shape=list(size_hw))
        levels = []
        for name, block in self.blocks.items():
            index = int(name)
            if rope is None:
                x = block(x)
            else:
                x = block(x, rope=rope[index] if self._rope_of_block else rope)
            if index in self._taps:
                levels.append(x[:, count:].transpose(1, 2).unflatten(2, size_hw))
                if self._taps[index] and count:
                    levels.append(x[:, :count].transpose(1, 2).unsqueeze(2))
        return levels

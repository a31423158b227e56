"""Taps: maps from behind several blocks of a plain ViT, side by side, for heads to join.

Each gets the norm of the network's last layer, as timm's `forward_intermediates(norm=True)` and
the detector of DINOv3 do it. Networks that end without one (PE spatial and lang, and those that
pool before their norm, as EVA-02) give what the block gives. Class and register tokens are dropped.

Letters: N images, C channels, h w patches.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from timm.models._features import FeatureGetterNet
from timm.models.beit import Beit
from torch import Tensor, nn

from cachedet.backbone.vit import is_plain_vit
from cachedet.errors import BackboneError
from cachedet.structures import FeatureSpec, LevelSpec

_log = logging.getLogger(__name__)

NormedFeatures = partial(FeatureGetterNet, norm=True)
"""timm's extractor of a network that keeps its last norm."""

_FAMILIES = (
    "plain ViTs have them (ViT, DeiT, BEiT, DINOv2, DINOv3, EVA, EVA-02, CLIP, SigLIP, AIMv2 and "
    "Perception Encoder models)"
)


class ViTTaps(nn.Module):
    """A plain ViT that gives the normed maps of some of its blocks."""

    def __init__(self, model: nn.Module, *, indices: Sequence[int], has_class: bool) -> None:
        super().__init__()
        self.model: Any = model
        self._indices = list(indices)  # of the blocks, from 0
        self._has_class = has_class

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> maps (N, C, h, w); if asked for, the last class token (N, C, 1, 1)."""
        found = self.model.forward_intermediates(
            images,
            indices=self._indices,
            return_prefix_tokens=self._has_class,
            norm=True,
            stop_early=True,
            intermediates_only=True,
        )
        if not self._has_class:
            return list(found)
        token = found[-1][1][:, :1]  # it stands first in all families
        return [*(patches for patches, _ in found), token.transpose(1, 2).unsqueeze(2)]


def require_uncut(cut: str | None) -> None:
    """Raises BackboneError where stages behind a tap shall be trained."""
    if cut is not None:
        raise BackboneError(
            f"behind {cut} (freeze_at) no stages can be trained from taps: these are normed, and "
            "no block goes on from them. Leave one of the two out, or store what the blocks leave "
            "to each other, such as --levels L9,C4"
        )


def choose_blocks(taps: int | Sequence[int], *, depth: int, name: str) -> tuple[int, ...]:
    """Blocks, counted from 1: as many evenly spaced ones, of which one is the last, or these.

    Raises BackboneError where the network has not so many.
    """
    beyond = [block for block in ([taps] if isinstance(taps, int) else taps) if block > depth]
    if beyond:
        raise BackboneError(
            f"{name} has {depth} blocks, counted from 1: taps cannot be "
            f"{', '.join(map(str, beyond))}"
        )
    if isinstance(taps, int):
        return tuple(number * depth // taps for number in range(1, taps + 1))
    blocks = tuple(sorted(taps))
    if len(blocks) > 1 and blocks[-1] == depth - 1:
        meant = ",".join(str(block + 1) for block in blocks)
        _log.warning(
            f"note: blocks are counted from 1, so the last of the {depth} is not among these taps; "
            f"papers that count from 0 mean --taps {meant}"
        )
    return blocks


def tap_levels(
    model: Any, taps: int | Sequence[int], *, like: LevelSpec, has_class: bool, name: str
) -> dict[int, tuple[LevelSpec, ...]]:
    """By the index of the block: `L3`, `L6`, ... and with the last the token `L12_class`.

    They are as the map `like` of the same network. Raises BackboneError where it has none of these.
    """
    if not (is_plain_vit(model) or isinstance(model, Beit)):
        raise BackboneError(
            f"{name} has no taps, {_FAMILIES}: its levels have strides of their own, so leave "
            "--taps out"
        )
    if has_class and model.cls_token is None:
        raise BackboneError(f"{name} has no class token: leave --global-token out")
    blocks = choose_blocks(taps, depth=len(model.blocks), name=name)
    levels: dict[int, tuple[LevelSpec, ...]] = {
        block - 1: (replace(like, name=f"L{block}", tap=True),) for block in blocks
    }
    if has_class:
        levels[blocks[-1] - 1] += (replace(like, name=f"L{blocks[-1]}_class", tokens=1, tap=True),)
    return levels


def taps_of(spec: FeatureSpec) -> tuple[int, ...] | None:
    """The blocks whose taps these levels are; None where they are no taps."""
    return tuple(int(level.name[1:]) for level in spec.maps if level.tap) or None

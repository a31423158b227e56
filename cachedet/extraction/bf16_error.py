"""How far a backbone that computes in bfloat16 is from itself in float32."""

from __future__ import annotations

import logging
import math
from collections.abc import Container

from torch import Tensor

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.extraction.inputs import InputLoader
from cachedet.store.format.layout import Block

_log = logging.getLogger("cachedet.extract")


def log_bf16(
    backbone: FrozenBackbone, loader: InputLoader, block: Block, *, gone: Container[int]
) -> None:
    """Say how far it is off on the first image of a block whose file is not gone."""
    row = next(row for row in block.rows if row not in gone)
    _log.info(describe_bf16(backbone, loader.load(row, block.view)[None]))


def describe_bf16(backbone: FrozenBackbone, images: Tensor) -> str:
    """``the backbone computes in bf16: C3 47 dB, C4 41 dB above its rounding``

    The signal-to-noise ratio of each level on `images` (N, 3, H, W), on any device.
    """
    images = images.to(next(backbone.parameters()).device)
    rounded = backbone(images)
    ratios = [
        f"{name} {_decibels(exact, rounded[name])}"
        for name, exact in backbone.in_float32()(images).items()
    ]
    return f"the backbone computes in bf16: {', '.join(ratios)} above its rounding"


def _decibels(exact: Tensor, rounded: Tensor) -> str:
    signal = float(exact.double().square().sum())
    noise = float((rounded.double() - exact).square().sum())
    return f"{10 * math.log10(signal / noise):.0f} dB" if signal and noise else "exact"

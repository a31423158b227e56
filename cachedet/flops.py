"""Counting FLOPs with torch, and the gradients of grouped convolutions as they are computed.

torch 2.14 counts the gradient of a grouped convolution's weights as if it had one group: a
depthwise one of 960 channels comes out 960 times too high.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def flop_counter() -> FlopCounterMode:
    """Inside, matrix products and convolutions are counted, forward and backward."""
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward}
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _convolution_backward(
    grad_out_shape: Sequence[int],
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    out_shape: Any = None,
) -> int:
    """As many as the forward has, for each of the two gradients that are asked for."""
    cells = (x_shape if transposed else grad_out_shape)[2:]  # where the kernel is laid on
    return 2 * x_shape[0] * math.prod(cells) * math.prod(w_shape) * sum(output_mask[:2])

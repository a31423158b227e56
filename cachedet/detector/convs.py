"""Convolutions of necks and heads, plain or separable.

Letters: N pictures, C channels, h w feature cells.
"""

from __future__ import annotations

import math

from torch import nn


def make_conv(
    in_channels: int,
    out_channels: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    bias: bool = True,
    separable: bool = False,
) -> nn.Module:
    """Make a convolution (N, C_in, h, w) -> (N, C_out, ceil(h / stride), ceil(w / stride)).

    Args:
        in_channels, out_channels: C_in, C_out.
        kernel: side in cells, odd.
        stride: cells of the input per cell of the output.
        bias: of the output channels.
        separable: a convolution of each channel by itself, then a 1x1 that mixes channels
            (arXiv 1704.04861, section 3.1, with nothing in between). No difference for kernel 1.
    """
    padding = kernel // 2
    if not separable or kernel == 1:
        return nn.Conv2d(
            in_channels, out_channels, kernel, stride=stride, padding=padding, bias=bias
        )
    depthwise = nn.Conv2d(
        in_channels,
        in_channels,
        kernel,
        stride=stride,
        padding=padding,
        groups=in_channels,
        bias=False,
    )
    return nn.Sequential(depthwise, nn.Conv2d(in_channels, out_channels, 1, bias=bias))


def init_he(conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """He's normal on the fan-out; PyTorch's own ignores that a depthwise fan is one channel."""
    fan_out = conv.out_channels // conv.groups * math.prod(conv.kernel_size)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_out))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)

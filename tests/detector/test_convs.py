from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cachedet.detector.layers import make_conv


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 2)])
def test_sizes_are_divided_by_the_stride_and_rounded_up(
    kernel: int, stride: int, separable: bool
) -> None:
    conv = make_conv(6, 10, kernel=kernel, stride=stride, separable=separable)
    found = conv(torch.randn(2, 6, 7, 10))
    assert tuple(found.shape) == (2, 10, -(-7 // stride), -(-10 // stride))


def test_separable_is_depthwise_then_pointwise() -> None:
    conv = make_conv(3, 4, stride=2, separable=True).double()
    assert isinstance(conv, nn.Sequential)
    depthwise, pointwise = conv
    maps = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    per_channel = [
        F.conv2d(maps[:, n : n + 1], depthwise.weight[n : n + 1], stride=2, padding=1)
        for n in range(3)
    ]
    mixed = torch.einsum("oc,nchw->nohw", pointwise.weight[:, :, 0, 0], torch.cat(per_channel, 1))
    expected = mixed + pointwise.bias[:, None, None]
    torch.testing.assert_close(conv(maps), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_parameter_counts(bias: bool) -> None:
    def count(separable: bool) -> int:
        conv = make_conv(6, 10, bias=bias, separable=separable)
        return sum(p.numel() for p in conv.parameters())

    assert count(separable=False) == 9 * 6 * 10 + 10 * bias
    assert count(separable=True) == 9 * 6 + 6 * 10 + 10 * bias


def test_kernel_1_is_never_separated() -> None:
    assert isinstance(make_conv(6, 10, kernel=1, separable=True), nn.Conv2d)

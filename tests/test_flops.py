"""FLOPs of a step against the forward's: each gradient costs as much."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cachedet.flops import flop_counter


@pytest.mark.parametrize(
    ("conv", "forward"),
    [
        (nn.Conv2d(8, 16, 3, padding=1), 2 * 16 * 16 * 16 * 8 * 9),
        (nn.Conv2d(8, 16, 3, stride=2, padding=1), 2 * 8 * 8 * 16 * 8 * 9),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), 2 * 16 * 16 * 8 * 9),
        (nn.Conv2d(8, 16, 1, groups=2), 2 * 16 * 16 * 16 * 4),
        (nn.ConvTranspose2d(8, 4, 2, stride=2), 2 * 16 * 16 * 8 * 4 * 4),
        (nn.ConvTranspose2d(8, 4, 2, stride=2, groups=4), 2 * 16 * 16 * 8 * 1 * 4),
    ],
)
@pytest.mark.parametrize("hands_on", [True, False])
def test_a_step_of_a_convolution(conv: nn.Module, forward: int, hands_on: bool) -> None:
    """Twice the forward more, once where the input needs no gradient."""
    with flop_counter() as counter:
        output = conv(torch.rand(1, 8, 16, 16, requires_grad=hands_on))
        assert counter.get_total_flops() == forward
        output.sum().backward()
        assert counter.get_total_flops() == forward * (3 if hands_on else 2)

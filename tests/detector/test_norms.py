from __future__ import annotations

import pytest
import torch

from cachedet.detector.norms import make_norm


def test_batch_norm_has_the_papers_numbers() -> None:
    norm = make_norm("batch", 4)
    assert isinstance(norm, torch.nn.BatchNorm2d)
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)
    maps = torch.randn(3, 4, 2, 2)
    expected = torch.nn.BatchNorm2d(4, eps=1e-3)(maps)
    torch.testing.assert_close(norm(maps), expected)


def test_a_single_cell_takes_the_running_statistics() -> None:
    norm = make_norm("batch", 4)
    found = norm(torch.full((1, 4, 1, 1), 2.0))
    torch.testing.assert_close(found, torch.full((1, 4, 1, 1), 2.0 / 1.001**0.5))


@pytest.mark.parametrize("channels", [16, 36, 64, 7])
def test_group_norm_divides_any_width(channels: int) -> None:
    norm = make_norm("group", channels)
    assert norm(torch.randn(1, channels, 1, 1)).shape == (1, channels, 1, 1)


def test_no_norm() -> None:
    maps = torch.randn(1, 2, 3, 3)
    assert torch.equal(make_norm("none", 2)(maps), maps)

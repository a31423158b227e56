from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cachedet.detector.layers import BatchNorm, make_conv, make_norm
from cachedet.distributed.collective import rank


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


def norm_by_parts(parts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """One rank's part through a norm twice, and what flows back from a loss that is not linear."""
    norm = make_norm("batch", parts[0].shape[1])
    assert isinstance(norm, BatchNorm)
    norm.to(torch.promote_types(parts[0].dtype, torch.float32))
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, len(norm.weight)))
        norm.bias.copy_(torch.linspace(-1.0, 1.0, len(norm.weight)))
        norm.running_mean.fill_(0.25)
        norm.running_var.fill_(4.0)
    maps = parts[rank()].clone().requires_grad_()
    normed = norm(norm(maps)).double()
    (normed.sin() + normed**3).sum().backward()
    found = {"normed": normed.detach(), "grad": maps.grad, "mean": norm.running_mean}
    found |= {"variance": norm.running_var, "batches": norm.num_batches_tracked}
    return found | {"grad weight": norm.weight.grad, "grad bias": norm.bias.grad}


CASES = {
    "two parts": ([3, 2], (4, 5)),
    "a rank without RoIs": ([0, 6], (7, 7)),
    "four parts": ([1, 1, 2, 1], (3, 2)),
    "single cells of two ranks": ([1, 1], (1, 1)),
    "one cell in all": ([0, 1], (1, 1)),
    "nothing at all": ([0, 0], (2, 2)),
}


TOLERANCES = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 0.1},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_ranks_norm_as_one_process(ranks: Any, case: str, dtype: torch.dtype) -> None:
    rows, cells = CASES[case]
    parts = [(torch.randn(n, 6, *cells) * 3 + 5).to(dtype) for n in rows]
    expected = norm_by_parts([torch.cat(parts)])
    found = ranks.run(norm_by_parts, parts, world=len(parts))
    close = TOLERANCES[dtype]
    for name in ("normed", "grad"):
        joined = torch.cat([one[name] for one in found])
        torch.testing.assert_close(joined, expected[name], **close)
    for name in ("mean", "variance", "batches"):
        for one in found:
            torch.testing.assert_close(one[name], expected[name], rtol=1e-5, atol=1e-6)
            assert torch.equal(one[name], found[0][name])
    for name in ("grad weight", "grad bias"):
        summed = torch.stack([one[name] for one in found]).sum(dim=0)
        torch.testing.assert_close(summed, expected[name], **close)


def test_large_means_do_not_drown_the_variance(ranks: Any) -> None:
    parts = [torch.randn(2, 6, 4, 4) + 1e4 for _ in range(2)]
    expected = norm_by_parts([torch.cat(parts)])
    found = ranks.run(norm_by_parts, parts, world=2)
    torch.testing.assert_close(found[0]["variance"], expected["variance"], rtol=1e-5, atol=0)


def norm_compiled(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """A compiled block with a norm in its middle, trained once."""
    torch.manual_seed(1)
    block = torch.nn.Sequential(
        torch.nn.Conv2d(6, 4, 1), make_norm("batch", 4), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)
    )
    block.compile(backend="eager")
    block(parts[rank()]).square().sum().backward()
    return [p.grad for p in block.parameters() if p.grad is not None]


def test_compiled_parts_norm_together_too(ranks: Any) -> None:
    parts = [torch.randn(n, 6, 3, 4) for n in (3, 2)]
    expected = ranks.run(norm_compiled, [torch.cat(parts)], world=1)[0]
    first, second = ranks.run(norm_compiled, parts, world=2)
    assert len(first) == 6
    for one, other, whole in zip(first, second, expected, strict=True):
        torch.testing.assert_close(one + other, whole, rtol=1e-4, atol=1e-4)


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

"""Normalisation and activation of necks and heads, chosen by name.

Letters: N images, C channels, h w cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cachedet.config.detector import Activation, Norm
from cachedet.distributed.collective import gather, sum_over_ranks, world_size

ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
_MOST_GROUPS = 32  # GroupNorm, arXiv 1803.08494
_LEAST_GROUP = 4  # channels; a group of one would be flattened on maps of a single cell
_CELLS = (0, 2, 3)  # the dimensions a channel's statistics are taken over


@dataclass(frozen=True, kw_only=True)
class LayerStyle:
    """What the layers of a neck or head are like."""

    norm: Norm
    activation: Activation
    separable: bool = False  # of 3x3 convolutions, see `make_conv`

    @property
    def has_bias(self) -> bool:
        """Whether a layer in front of a norm has a bias; norms have one themselves."""
        return self.norm == "none"

    def make_activation(self) -> nn.Module:
        return ACTIVATIONS[self.activation]()


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm that also takes a lone image whose coarsest map is a single cell.

    One value per channel has no variance, and no value at all (no RoI was sampled) no mean either;
    the running statistics are then used and stay as they are. Ranks that share a batch share its
    statistics too (as torch's SyncBatchNorm, which has no CPU), and count its values together.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, h, w) -> the same shape."""
        if self.training and world_size() > 1:
            normed: Tensor = self._forward_of_ranks(maps)
            return normed
        if self.training and maps.numel() <= maps.shape[1]:
            return F.batch_norm(
                maps, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(maps)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _forward_of_ranks(self, maps: Tensor) -> Tensor:
        count, mean, variance = _moments_over_ranks(maps)
        running_mean, running_var = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
        # Decided on the device: asking it would make the host wait at every layer.
        enough = count > 1
        mean = torch.where(enough, mean.to(running_mean.dtype), running_mean)
        variance = torch.where(enough, variance.to(running_var.dtype), running_var)
        with torch.no_grad():  # as BatchNorm2d does: the mean and the unbiased variance
            pull = enough.to(running_mean.dtype) * cast(float, self.momentum)
            unbiased = variance * (count / (count - 1).clamp(min=1)).to(variance.dtype)
            running_mean += pull * (mean - running_mean)
            running_var += pull * (unbiased - running_var)
            cast(Tensor, self.num_batches_tracked).add_(enough)
        normed: Tensor = _NormByMoments.apply(
            maps, self.weight, self.bias, mean, variance, enough / count.clamp(min=1), self.eps
        )
        return normed


@torch.no_grad()
def _moments_over_ranks(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count (), mean (C,) and biased variance (C,) of each channel's values on all ranks, float64.

    Merged without cancellation (Chan, Golub, LeVeque 1983); a rank may have no values at all.
    """
    channels = maps.shape[1]
    statistics = torch.zeros(2 * channels + 1, dtype=torch.float64, device=maps.device)
    if maps.numel():
        exact = torch.promote_types(maps.dtype, torch.float32)
        variance, mean = torch.var_mean(maps.to(exact), dim=_CELLS, correction=0)
        statistics[0] = maps.numel() // channels
        statistics[1 : channels + 1], statistics[channels + 1 :] = mean, variance
    counts, means, variances = torch.split(gather(statistics), [1, channels, channels], dim=1)
    count = counts.sum()
    share = counts / count.clamp(min=1)
    mean = (share * means).sum(dim=0)
    variance = (share * (variances + (means - mean) ** 2)).sum(dim=0)
    return count, mean, variance


class _NormByMoments(torch.autograd.Function):
    """(x - mean) / deviation * weight + bias, where every rank's x has a part in mean and deviation

    `part` () is the part of one value in the mean, 0 where the moments do not depend on x. The
    gradients of weight and bias are this rank's part of them, as those of any layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        part: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(maps, weight, mean, (variance + eps).rsqrt(), part)
        return F.batch_norm(maps, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, mean, rate, part = ctx.saved_tensors
        by_channel = (1, -1, 1, 1)
        grad_normed = grad.to(weight.dtype)
        normed = (maps.to(weight.dtype) - mean.view(by_channel)) * rate.view(by_channel)
        grad_bias = grad_normed.sum(dim=_CELLS)
        grad_weight = (grad_normed * normed).sum(dim=_CELLS)
        of_all = sum_over_ranks(torch.stack([grad_bias, grad_weight])) * part.to(weight.dtype)
        by_mean, by_deviation = of_all[0].view(by_channel), of_all[1].view(by_channel)
        scale = (weight * rate).view(by_channel)
        grad_maps = (grad_normed - by_mean - normed * by_deviation) * scale
        return grad_maps.to(maps.dtype), grad_weight, grad_bias, None, None, None, None


def make_norm(name: Norm, channels: int) -> nn.Module:
    """BatchNorm as in the paper's RetinaNet (PAPER 2.2), GroupNorm, or nothing."""
    if name == "batch":
        return BatchNorm(channels, eps=1e-3, momentum=0.01)  # Keras momentum 0.99
    if name == "group":
        most = max(1, min(_MOST_GROUPS, channels // _LEAST_GROUP))
        groups = next(g for g in range(most, 0, -1) if channels % g == 0)
        return nn.GroupNorm(groups, channels)
    return nn.Identity()


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

    The side `kernel` is odd. A separable one is a convolution of each channel by itself, then a
    1x1 that mixes channels (arXiv 1704.04861, section 3.1, with nothing in between).
    """
    make = partial(nn.Conv2d, kernel_size=kernel, stride=stride, padding=kernel // 2)
    if not separable or kernel == 1:
        return make(in_channels, out_channels, bias=bias)
    depthwise = make(in_channels, in_channels, groups=in_channels, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(in_channels, out_channels, 1, bias=bias))


def init_he(conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """He's normal on the fan-out; PyTorch's own ignores that a depthwise fan is one channel."""
    fan_out = conv.out_channels // conv.groups * math.prod(conv.kernel_size)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_out))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)

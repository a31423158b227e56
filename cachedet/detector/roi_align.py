"""RoIAlign (arXiv 1703.06870 section 3) over the levels of a pyramid.

Letters: N images, R RoIs of all images, C channels, S cells of a RoI's side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from cachedet.structures import Features

_CANONICAL_SIZE = 224  # pixels of a RoI's side that belongs ...
_CANONICAL_STRIDE = 16  # ... to the level of this stride (arXiv 1612.03144 equation 1)
_LEAST_AREA = 1e-6

Pooling = Callable[[Tensor, Tensor], Tensor]  # boxes (R, 4), image (R,) -> cells (R, C, S, S)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """All cells of all levels as rows of channels: levels, in them images, in them rasters."""

    table: Tensor  # (rows, C)
    sides_hw: Tensor  # (levels, 2)
    starts: Tensor  # (levels,) row where each begins
    dtype: torch.dtype  # of the levels


class PyramidRoIAlign(nn.Module):
    """Pools each RoI from the level that fits its size, to `resolution` (S) cells of a side."""

    def __init__(self, *, strides: Sequence[int], resolution: int = 7) -> None:
        super().__init__()
        self.strides = tuple(strides)  # of the levels, fine to coarse
        self.resolution = resolution

    def forward(self, pyramid: Features, boxes: Tensor, image: Tensor) -> Tensor:
        """Cells (R, C, S, S) of boxes (R, 4), each of the image (R,), from P levels (N, C, h, w).

        A box that is NaN is pooled like an empty one, its NaN is in the losses.
        """
        return self.over(pyramid)(boxes, image)

    def over(self, pyramid: Features) -> Pooling:
        """`forward` for boxes that come one after the other: the levels are laid out once."""
        maps = list(pyramid.values())
        if maps[0].device.type == "cpu" and not torch.compiler.is_exporting():
            return partial(self._sum_rows, _rows_of(maps))
        return partial(self._pool, maps)

    def _pool(self, maps: Sequence[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """By torchvision's kernel, level by level."""
        boxes = boxes.nan_to_num()  # the kernel would look up memory anywhere
        rois = torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1)
        level_of = self.levels_of(boxes)
        members, pooled = [], []
        for index, (level, stride) in enumerate(zip(maps, self.strides, strict=True)):
            rows = (level_of == index).nonzero().squeeze(1)
            exact = torch.promote_types(level.dtype, torch.float32)  # bf16 cannot tell pixels apart
            members.append(rows)
            pooled.append(
                roi_align(
                    level.to(exact),
                    rois[rows].to(exact),
                    output_size=self.resolution,
                    spatial_scale=1 / stride,
                    sampling_ratio=1,  # the centre of a cell, PAPER 2.2
                    aligned=True,
                ).to(level.dtype)
            )
        cells = torch.cat(pooled)
        ordered = cells.new_empty(boxes.shape[0], *cells.shape[1:])
        return ordered.index_put((torch.cat(members),), cells)  # exporters cannot add up members

    def _sum_rows(self, rows: _Rows, boxes: Tensor, image: Tensor) -> Tensor:
        """The same as weighted sums of four rows each; that kernel's gradient is slow on a CPU."""
        boxes = boxes.detach().to(rows.table.dtype).nan_to_num()
        level_of = self.levels_of(boxes)
        corners = boxes / boxes.new_tensor(self.strides)[level_of, None] - 0.5
        height, width = rows.sides_hw[level_of].unbind(dim=1)
        x, weight_x = self._samples(corners[:, 0], corners[:, 2], width)
        y, weight_y = self._samples(corners[:, 1], corners[:, 3], height)
        first = rows.starts[level_of] + image * height * width
        y = first[:, None, None] + y * width[:, None, None]
        index = y[:, :, None, :, None] + x[:, None, :, None, :]
        weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
        sums = F.embedding_bag(
            index.reshape(-1, 4), rows.table, per_sample_weights=weight.reshape(-1, 4), mode="sum"
        )
        side = self.resolution
        return sums.view(-1, side, side, sums.shape[1]).permute(0, 3, 1, 2).to(rows.dtype)

    def _samples(self, begin: Tensor, end: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """The centres of cells from `begin` (R,) to `end` between the `count` (R,) of an axis.

        Returns (R, S, 2) the two on either side of each and their weights: 0 beyond the map.
        """
        size = ((end - begin) / self.resolution)[:, None]
        at = begin[:, None] + (torch.arange(self.resolution).to(size) + 0.5) * size
        last = (count - 1)[:, None]
        is_inside = (at >= -1) & (at <= count[:, None])
        at = torch.where(is_inside, at.clamp(min=0), 0).minimum(last.to(at))
        low = at.floor()
        share = at - low
        below = low.to(torch.int64)
        weights = torch.stack([1 - share, share], dim=2) * is_inside[:, :, None]
        return torch.stack([below, (below + 1).minimum(last)], dim=2), weights

    def levels_of(self, boxes: Tensor) -> Tensor:
        """(R, 4) -> (R,) index of the level each box is pooled from.

        Wanted is the stride of 16 times 2^floor(log2(side / 224)); taken is the coarsest level that
        is no coarser, strides rounded to powers of two, or the finest.
        """
        sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).clamp(min=_LEAST_AREA).sqrt()
        wanted = torch.floor(torch.log2(sides / _CANONICAL_SIZE) + 1e-6)
        canonical = math.log2(_CANONICAL_STRIDE)
        coarser = [round(math.log2(stride)) - canonical for stride in self.strides[1:]]
        return (wanted[:, None] >= wanted.new_tensor(coarser)).sum(dim=1)


def _rows_of(maps: Sequence[Tensor]) -> _Rows:
    """Of levels (N, C, h, w), fine to coarse."""
    exact = torch.promote_types(maps[0].dtype, torch.float32)  # bf16 cannot tell pixels apart
    levels = [level.to(exact).permute(0, 2, 3, 1).flatten(end_dim=2) for level in maps]
    counts = torch.tensor([0, *(len(level) for level in levels[:-1])])
    return _Rows(
        table=torch.cat(levels),
        sides_hw=torch.tensor([level.shape[2:] for level in maps]),
        starts=counts.cumsum(0),
        dtype=maps[0].dtype,
    )

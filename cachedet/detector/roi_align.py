"""RoIAlign (arXiv 1703.06870 section 3) over the levels of a pyramid.

Letters: N images, R RoIs of all images, C channels, S cells of a RoI's side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from cachedet.structures import Features

_CANONICAL_SIZE = 224  # pixels of a RoI's side that belongs ...
_CANONICAL_STRIDE = 16  # ... to the level of this stride (arXiv 1612.03144 equation 1)
_LEAST_AREA = 1e-6


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
        boxes = boxes.nan_to_num()  # the kernel would look up memory anywhere
        maps = list(pyramid.values())
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

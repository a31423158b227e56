"""From the cells of a detection's box to a mask of the picture.

Letters: D detections, S cells of a box's side, H W pixels of the picture.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cachedet.masks import encode_bitmap
from cachedet.structures import Detections, SizeHW

_THRESHOLD = 0.5


def paste_masks(found: Detections, size_hw: SizeHW) -> list[bytes]:
    """One code of masks.py for each detection, whose boxes are in pixels of the picture."""
    if found.masks is None:
        return []
    return [
        encode_bitmap(paste_mask(cells, box, size_hw))
        for cells, box in zip(found.masks.cpu(), found.boxes.cpu(), strict=True)
    ]


def paste_mask(cells: Tensor, box: Tensor, size_hw: SizeHW) -> NDArray[np.bool_]:
    """Probabilities (S, S) over a box (4,) -> bitmap (H, W): where they reach a half.

    Each pixel's centre is looked up among the centres of the cells, bilinearly; beyond the outer
    centres they fade to zero, as in Mask R-CNN's own code.
    """
    height, width = size_hw
    x1, y1, x2, y2 = box.tolist()
    left, right = max(math.floor(x1), 0), min(math.ceil(x2), width)
    top, bottom = max(math.floor(y1), 0), min(math.ceil(y2), height)
    bitmap = np.zeros(size_hw, dtype=np.bool_)
    if right <= left or bottom <= top or x2 <= x1 or y2 <= y1:
        return bitmap
    grid_x = (torch.arange(left, right) + 0.5 - x1) / (x2 - x1) * 2 - 1
    grid_y = (torch.arange(top, bottom) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack(torch.meshgrid(grid_x, grid_y, indexing="xy"), dim=-1)
    values = F.grid_sample(
        cells[None, None].float(), grid[None].float(), align_corners=False, padding_mode="zeros"
    )
    bitmap[top:bottom, left:right] = (values[0, 0] >= _THRESHOLD).numpy()
    return bitmap

"""What the necks share: strides and names of P levels, and pooling to a coarser one.

Letters: N pictures, C channels, h w feature cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from cachedet.structures import FeatureSpec, LevelSpec


def pyramid_spec(strides: Sequence[int], *, channels: int) -> FeatureSpec:
    """Levels of exactly these strides, fine to coarse, each named P{round(log2(stride))}.

    A stride of 14 gives P4. Raises ValueError if two levels would share a name.
    """
    levels: dict[str, LevelSpec] = {}
    for stride in strides:
        name = f"P{round(math.log2(stride))}"
        if name in levels:
            raise ValueError(
                f"levels of strides {levels[name].stride} and {stride} would both be called "
                f"{name}; choose levels whose strides differ by a factor of 2 with detector.levels"
            )
        levels[name] = LevelSpec(name=name, channels=channels, stride=stride)
    return FeatureSpec(tuple(levels.values()))


def continued_strides(spec: FeatureSpec, *, num_levels: int) -> tuple[int, ...]:
    """Strides of `spec`, then twice the one before until there are `num_levels`."""
    strides = [level.stride for level in spec]
    while len(strides) < num_levels:
        strides.append(strides[-1] * 2)
    return tuple(strides)


def coarsen(level: Tensor, *, factor: int) -> Tensor:
    """Max-pool (N, C, h, w) -> (N, C, ceil(h / factor), ceil(w / factor)).

    Twice by 2 equals once by 4, whatever the size.
    """
    return F.max_pool2d(level, factor, stride=factor, ceil_mode=True)

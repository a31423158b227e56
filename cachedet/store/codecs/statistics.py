"""First and second moments of features over a sample: what codecs are fitted on."""

from __future__ import annotations

import torch
from torch import Tensor

from cachedet.structures import Features


class LevelStatistics:
    """Running sums over the cells of one level, in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0  # cells seen
        self.minimum = float("inf")  # the smallest value of any channel
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._products = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, maps: Tensor) -> None:
        """Maps (n, C, h, w) of finite values."""
        cells = maps.detach().cpu().double().transpose(0, 1).flatten(1)  # (C, n * h * w)
        self.count += cells.shape[1]
        self.minimum = min(self.minimum, float(cells.min()))
        self._sum += cells.sum(dim=1)
        self._products += cells @ cells.T

    @property
    def mean(self) -> Tensor:
        """(C,) float64."""
        return self._sum / self.count

    @property
    def covariance(self) -> Tensor:
        """(C, C) float64."""
        return self._products / self.count - torch.outer(self.mean, self.mean)

    @property
    def power(self) -> float:
        """Mean square of a value."""
        return float(self._products.diagonal().mean() / self.count)


class FeatureStatistics:
    """`LevelStatistics` of every level."""

    def __init__(self) -> None:
        self.levels: dict[str, LevelStatistics] = {}

    def add(self, features: Features) -> None:
        """Maps (n, C, h, w) per level."""
        for name, maps in features.items():
            if name not in self.levels:
                self.levels[name] = LevelStatistics(maps.shape[1])
            self.levels[name].add(maps)

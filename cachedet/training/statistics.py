"""What steps took and reached, summed over an epoch or between two rows of the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(kw_only=True, eq=False)
class StepStatistics:
    """Sums over steps. Losses are weighted by pictures, so that a small step counts little."""

    pictures: int = 0
    seconds: float = 0.0  # of the steps, waiting included; without validations and saving
    waiting: float = 0.0  # seconds in which the next batch was not there yet
    loss_sums: dict[str, float] = field(default_factory=dict)  # mean of a step times its pictures

    @classmethod
    def of_step(
        cls, losses: Mapping[str, float], *, pictures: int, seconds: float, waiting: float
    ) -> StepStatistics:
        """One step; `losses` are means over its pictures."""
        sums = {name: value * pictures for name, value in losses.items()}
        return cls(pictures=pictures, seconds=seconds, waiting=waiting, loss_sums=sums)

    def merge(self, later: StepStatistics) -> None:
        """Count the steps of `later` too."""
        self.pictures += later.pictures
        self.seconds += later.seconds
        self.waiting += later.waiting
        for name, summed in later.loss_sums.items():
            self.loss_sums[name] = self.loss_sums.get(name, 0.0) + summed

    def means(self) -> dict[str, float]:
        """The losses by name; empty before the first step."""
        return {name: value / self.pictures for name, value in self.loss_sums.items()}

    @property
    def pictures_per_second(self) -> float:
        return self.pictures / self.seconds if self.seconds > 0 else 0.0

    @property
    def waiting_share(self) -> float:
        """Of the time, in 0..1."""
        return self.waiting / self.seconds if self.seconds > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

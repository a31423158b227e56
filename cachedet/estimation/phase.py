"""A piece of work whose stages run at the same time: how long it takes, and what holds it up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Seconds of the wall clock, and of each stage.

    Stages overlap, so the phase is shorter than their sum; they share cores and wait for each
    other, so it is longer than the longest of them.
    """

    seconds: float
    stages: Mapping[str, float]  # seconds each would take if nothing else held it up

    @property
    def bottleneck(self) -> str:
        """The stage that takes longest."""
        return max(self.stages, key=self.stages.__getitem__)

    def times(self, factor: float) -> Phase:
        """`factor` times as much of the same work."""
        stages = {name: seconds * factor for name, seconds in self.stages.items()}
        return Phase(seconds=self.seconds * factor, stages=stages)

    def scaled(self, factors: Mapping[str, float]) -> Phase:
        """The phase where some stages take `factors` times as long.

        How much longer it takes than its longest stage is taken to stay as it was measured.
        """
        stages = {name: s * factors.get(name, 1.0) for name, s in self.stages.items()}
        before, after = max(self.stages.values()), max(stages.values())
        return Phase(seconds=self.seconds * after / before if before > 0 else after, stages=stages)

    def at_least(self, stage: str, seconds: float) -> Phase:
        """The phase with a stage that takes these seconds, beside all others."""
        known = max(seconds, self.stages.get(stage, 0.0))
        stages = {**self.stages, stage: known}
        return replace(self, seconds=max(self.seconds, known), stages=stages)

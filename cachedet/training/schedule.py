"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

_DROP = 0.1


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """Linear warm-up, then cosine to zero, or steps of a tenth.

    Attributes:
        peak: reached after the warm-up.
        total_steps: of the run.
        warmup_steps: wished for, counted in total_steps; it is over after half of them at most.
        warmup_from: share of the peak that the warm-up starts at.
        kind: "cosine" or "step".
        drops: "step" only: shares of total_steps at which the rate falls to a tenth.
    """

    peak: float
    total_steps: int
    warmup_steps: int
    kind: Literal["cosine", "step"]
    drops: Sequence[float] = ()
    warmup_from: float = 0.0067 / 0.32  # PAPER 2.2, RetinaNet

    def __post_init__(self) -> None:
        if self.peak <= 0 or self.total_steps < 1:
            raise ValueError(
                f"expected peak > 0 and total_steps >= 1, got {self.peak} and {self.total_steps}"
            )
        if self.warmup_steps < 0:
            raise ValueError(f"expected warmup_steps >= 0, got {self.warmup_steps}")

    def stretched(self, total_steps: int) -> LearningRate:
        """The same over another number of steps; a warm-up that was cut short can grow again."""
        return replace(self, total_steps=total_steps)

    def at(self, step: int) -> float:
        """Rate of step number `step`, counted from 0."""
        warmup_steps = min(self.warmup_steps, self.total_steps // 2)
        if step < warmup_steps:
            return self.peak * (self.warmup_from + (1 - self.warmup_from) * step / warmup_steps)
        if self.kind == "step":
            passed = sum(step >= drop * self.total_steps for drop in self.drops)
            return float(self.peak * _DROP**passed)
        rest = max(self.total_steps - warmup_steps, 1)
        share = min((step - warmup_steps) / rest, 1.0)
        return self.peak * (1 + math.cos(math.pi * share)) / 2

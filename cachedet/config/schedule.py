"""The schedule of a training as a user writes it, and the learning rate it gives each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from cachedet.config.detector import Config, Count, Fraction, Positive

Decay = Literal["step", "cosine"]
_DROP = 0.1  # of the learning rate, at each step down


class ScheduleConfig(Config):
    """How the heads are optimised.

    `lr` belongs to steps of `reference_batch` images and is scaled linearly to the images of a
    step (arXiv 1706.02677); without `reference_batch` it is taken as it is.
    """

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 72  # each is planned before the first step
    batch_size: Count = 256
    accumulate: Count = 1  # batches of one optimiser step, for a memory that holds no larger batch
    reference_batch: Count | None = None
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.32
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4  # kernels only, as in PAPER 2.2
    kind: Decay = "step"
    drops: tuple[Fraction, ...] = (48 / 72, 68 / 72)  # of all steps; each multiplies lr by 0.1
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    warmup_from: Fraction = 0.0067 / 0.32  # of lr, where the warm-up starts (PAPER 2.2)
    clip_norm: Annotated[float, Field(ge=0)] = 0.0  # 0: no gradient clipping
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # 0: no moving average of the weights

    @property
    def step_images(self) -> int:
        """Images of a whole optimiser step."""
        return self.batch_size * self.accumulate

    @property
    def scaled_lr(self) -> float:
        """The learning rate after the warm-up, for steps of `step_images`."""
        return self.lr * self.step_images / (self.reference_batch or self.step_images)

    def describe_lr(self) -> str:
        """For a person: what the learning rate is and where it comes from."""
        parts = "" if self.accumulate == 1 else f" in {self.accumulate} batches"
        step = f"steps of {self.step_images} images{parts}"
        if self.reference_batch in (None, self.step_images):
            return f"learning rate {self.lr:g} for {step}"
        return (
            f"learning rate {self.scaled_lr:g} for {step} "
            f"({self.lr:g} belongs to {self.reference_batch}, scaled linearly)"
        )


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """Linear warm-up, then cosine to zero, or steps of a tenth."""

    peak: float  # reached after the warm-up
    total_steps: int  # of the run
    warmup_steps: int  # counted in total_steps; the warm-up is over after half of them at most
    warmup_from: float  # share of the peak that the warm-up starts at
    kind: Decay
    drops: Sequence[float] = ()  # of "step": shares of total_steps at which the rate falls

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

"""When a run has stopped to improve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Metric = Literal["ap", "ap50", "ap75", "loss"]


@dataclass(kw_only=True, eq=False)
class EarlyStopping:
    """Counts how often in a row a metric did not improve.

    Attributes:
        metric: `loss` improves by falling, the others by rising.
        patience: misses after which the run is over.
        min_delta: an improvement is more than this.
        best: value of the last improvement; None before the first value.
        misses: values since then.
    """

    metric: Metric
    patience: int
    min_delta: float
    best: float | None = None
    misses: int = 0

    def observe(self, value: float) -> None:
        """Take in the next value; NaN is no improvement."""
        if self.best is None:
            improved = value == value
        else:
            gain = self.best - value if self.metric == "loss" else value - self.best
            improved = gain > self.min_delta
        if improved:
            self.best, self.misses = value, 0
        else:
            self.misses += 1

    @property
    def is_exhausted(self) -> bool:
        return self.misses >= self.patience

    def describe(self) -> str:
        """Why the run is over, for a person."""
        best = "never had a value" if self.best is None else f"was best at {self.best:.4g}"
        unit = "epochs" if self.metric == "loss" else "validations"
        return f"{self.metric} {best} and did not improve in the last {self.misses} {unit}"

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "best": self.best, "misses": self.misses}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue counting; a state of another metric, or none, starts anew."""
        if state is not None and state["metric"] == self.metric:
            self.best, self.misses = state["best"], state["misses"]

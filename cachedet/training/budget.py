"""A run that ends after so much time, with a schedule that comes to its end there."""

from __future__ import annotations

from dataclasses import dataclass

_TOO_EARLY = 0.02  # of the budget: the first steps are not yet those of the run


@dataclass(kw_only=True)
class TimeBudget:
    """Seconds of training steps; waiting for batches counts, validations and saving do not.

    How many steps fit is not known before, as machines have other work too: it is told anew at
    every step from the pace so far. A run of a budget is therefore no two times the same.

    Attributes:
        seconds: of the run.
        spent: by the steps that are done.
    """

    seconds: float
    spent: float = 0.0

    @property
    def is_spent(self) -> bool:
        return self.spent >= self.seconds

    def add(self, seconds: float) -> None:
        """One step took so long."""
        self.spent += seconds

    def total_steps(self, *, done: int, planned: int) -> int:
        """Steps of the whole run.

        Args:
            done: until now.
            planned: before it began.
        """
        share = self.spent / self.seconds
        return planned if done == 0 or share < _TOO_EARLY else max(done, round(done / share))

"""A run that ends after so much time, with a schedule that comes to its end there."""

from __future__ import annotations

from dataclasses import dataclass

_TOO_EARLY = 0.02  # of the budget: the first steps are not yet those of the run


@dataclass(frozen=True, kw_only=True)
class TimeBudget:
    """Seconds of training steps; waiting for batches counts, validations and saving do not.

    How many steps fit is not known before, as machines have other work too: it is told anew at
    every step from the pace so far. A run of a budget is therefore no two times the same.

    What is spent is kept with the run's state. Steps after the last state that was saved are lost
    where a process is killed: they are taken again, and only the second time is counted.

    Attributes:
        seconds: of the run.
    """

    seconds: float

    def is_spent(self, spent: float) -> bool:
        """Whether steps that took `spent` seconds leave no time for another."""
        return spent >= self.seconds

    def total_steps(self, *, done: int, spent: float, planned: int) -> int:
        """Steps of the whole run.

        Args:
            done: until now.
            spent: seconds that they took.
            planned: before it began.
        """
        share = spent / self.seconds
        return planned if done == 0 or share < _TOO_EARLY else max(done, round(done / share))

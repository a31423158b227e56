"""What ends a run before its last epoch: a signal, early stopping, or a budget of time.

The command line imports this before all else, so it imports nothing that takes time.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from cachedet.store.files.farewell import forget_end, note_end

if TYPE_CHECKING:
    from cachedet.config.run import Metric

STOPPED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: not done, run it again to continue
_SIGNALS = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT")  # Windows has no SIGHUP and SIGUSR1
_TOO_EARLY = 0.02  # of a budget: the first steps are not yet those of the run


class StopRequested(Exception):
    """Leaves work that can be done again, such as a validation."""


class StoppedAtOnce(BaseException):
    """Leaves work of which nothing is worth saving; no library takes it for an error of its own."""


class StopSignals:
    """Between enter and exit, signals that ask this process to end only leave a note here.

    These are SIGTERM, SIGHUP, SIGUSR1 and the first Ctrl-C; a second one raises KeyboardInterrupt
    at once. Handlers are installed in the main thread only (Python allows no other), not over
    signals that are ignored (as under nohup), and those that were there before come back at the
    exit. One inside another takes over what the outer one has noted, and hands on what came.
    After a signal, reads of a store that stall are given up.

    With `at_once` the first signal raises StoppedAtOnce, for a start that can be made again.
    """

    def __init__(self, *, at_once: bool = False, announces: bool | None = None) -> None:
        self.received: str | None = None  # name of the first signal
        self.has_raised = False  # StoppedAtOnce, whatever became of it
        self._at_once = at_once
        self._announces = announces  # to a person; None: where progress is shown
        self._interrupts = 0
        self._outer: StopSignals | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopSignals:
        if self._announces is None:
            from cachedet.progress import is_shown

            self._announces = is_shown()
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is None or signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._receive)
            owner = getattr(self._before[number], "__self__", None)
            self._outer = owner if isinstance(owner, StopSignals) else self._outer
        if self._outer is not None and self.received is None:
            self.received = self._outer.received
            self._interrupts = self._outer._interrupts
        if self.received is not None:
            note_end(self)
        return self

    def __exit__(self, *_: object) -> None:
        forget_end(self)
        if self._outer is not None:
            self._outer.received = self._outer.received or self.received
            self._outer._interrupts = self._interrupts
        for number, handler in self._before.items():
            # None: a handler that was not installed from Python, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def raise_if_received(self) -> None:
        """Raises StopRequested once a signal has come."""
        if self.received is not None:
            raise StopRequested(self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
        if self.received is not None:
            return
        self.received = signal.Signals(number).name
        note_end(self)
        what = (
            "stopping" if self._at_once else "finishing the step and saving; Ctrl-C stops at once"
        )
        if self._announces:  # not logged: the signal may have come in the middle of that
            with suppress(OSError):  # the terminal is gone
                os.write(2, f"\n{self.received}: {what}\n".encode())
        if self._at_once:
            self.has_raised = True
            raise StoppedAtOnce(self.received)


@dataclass(kw_only=True, eq=False)
class EarlyStopping:
    """Counts how often in a row a metric did not improve."""

    metric: Metric  # `loss` improves by falling, the others by rising
    patience: int  # misses after which the run is over
    min_delta: float  # an improvement is more than this
    best: float | None = None  # value of the last improvement; None before the first value
    misses: int = 0  # values since then

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


@dataclass(frozen=True, kw_only=True)
class TimeBudget:
    """Seconds of training steps; waiting for batches counts, validations and saving do not.

    How many steps fit is not known before, as machines have other work too: it is reckoned anew at
    every step from the pace so far. A run of a budget is therefore no two times the same.

    What is spent is kept with the run's state. Steps after the last state that was saved are lost
    where a process is killed: they are taken again, and only the second time is counted.
    """

    seconds: float

    def is_spent(self, spent: float) -> bool:
        """Whether steps that took `spent` seconds leave no time for another."""
        return spent >= self.seconds

    def total_steps(self, *, done: int, spent: float, planned: int) -> int:
        """Steps of the whole run: `done` of them took `spent` seconds, `planned` were wanted."""
        share = spent / self.seconds
        return planned if done == 0 or share < _TOO_EARLY else max(done, round(done / share))

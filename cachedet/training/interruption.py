"""Signals that ask a training run to save and stop: preemption of a cluster, or Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")  # Windows has no SIGUSR1
STOPPED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: not done, run it again to continue


class StopRequested(Exception):
    """Leaves work that can be done again, such as a validation."""


class StopSignals:
    """Between enter and exit, SIGTERM, SIGUSR1 and the first Ctrl-C only leave a note here.

    A second Ctrl-C raises KeyboardInterrupt at once. Handlers are installed in the main thread
    only (Python allows no other), not over signals that are ignored (as under nohup), and those
    that were there before come back at the exit.

    Attributes:
        received: name of the first signal; None before it.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._interrupts = 0
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is None or signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not installed from Python, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def raise_if_received(self) -> None:
        """Raises StopRequested once a signal has come."""
        if self.received is not None:
            raise StopRequested(self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
        if self.received is None:
            self.received = name
            # Not print(): the signal may have come in the middle of one.
            os.write(2, f"\n{name}: finishing the step and saving; Ctrl-C stops at once\n".encode())

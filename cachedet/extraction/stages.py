"""How fast each stage of extraction could go, and which one holds the others up."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(kw_only=True)
class Work:
    """What one stage has done so far."""

    workers: int
    seconds: float = 0.0  # busy, summed over its workers
    pictures: int = 0
    nbytes: int = 0

    @property
    def pictures_per_second(self) -> float:
        """Of all its workers together, if nothing else held them up."""
        return self.pictures * self.workers / self.seconds if self.seconds > 0 else 0.0

    @property
    def bytes_per_second(self) -> float:
        return self.nbytes * self.workers / self.seconds if self.seconds > 0 else 0.0


class StageClock:
    """Adds up the busy time of every stage, from any thread.

    Args:
        workers: threads of each stage, in the order pictures pass through.
    """

    def __init__(self, workers: dict[str, int]) -> None:
        self.stages = {name: Work(workers=count) for name, count in workers.items()}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def busy(self, stage: str, pictures: int) -> Iterator[Work]:
        """Time the body; it adds the bytes it moved to `nbytes` of the value it gets."""
        work = Work(workers=1)
        started = time.perf_counter()
        yield work
        seconds = time.perf_counter() - started
        with self._lock:
            total = self.stages[stage]
            total.seconds += seconds
            total.pictures += pictures
            total.nbytes += work.nbytes

    @property
    def slowest(self) -> str | None:
        """The stage with the lowest rate; None before all have done something."""
        rates = {name: work.pictures_per_second for name, work in self.stages.items()}
        return min(rates, key=rates.__getitem__) if all(rates.values()) else None

    def describe(self) -> str:
        """``decode 210/s 55 MB/s, ...; slowest: backbone``"""
        parts = [
            f"{name} {work.pictures_per_second:.0f}/s {work.bytes_per_second / 1e6:.0f} MB/s"
            for name, work in self.stages.items()
            if work.pictures
        ]
        named = f"; slowest: {self.slowest}" if self.slowest else ""
        return ", ".join(parts) + named

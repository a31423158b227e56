"""What a person sees of long work, on standard error: standard output belongs to results.

A progress line for each stage, and the lines that the library logs. The library itself shows
neither: the command line asks for both, with `show_progress`.
"""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from cachedet.text import printable

_PLAIN_INTERVAL = 15.0  # seconds between lines where the output is no terminal
_WARM_UP = 5.0  # seconds; the first units are slow and tell nothing of the rest
_LEAST = 5.0  # seconds that a rate is measured over before it forecasts an end
_BAR, _WIDE = 20, 110  # columns of the bar, and of a terminal that has room for it
_log = logging.getLogger("cachedet")
_log.addHandler(logging.NullHandler())  # else Python prints warnings of a program without handlers

_is_shown = False


def is_shown() -> bool:
    """Whether this process shows anything; processes that it starts have to be told."""
    return _is_shown


@contextmanager
def show_progress() -> Iterator[None]:
    """Inside, progress lines and what the library logs appear on standard error.

    Examples:
        >>> with cachedet.show_progress():
        ...     cachedet.extract(images="photos", annotations="train.json", store="train.zarr")
    """
    global _is_shown
    before, level, handler = _is_shown, _log.level, _BareLines()
    _is_shown = True
    _log.setLevel(logging.INFO)
    _log.addHandler(handler)
    try:
        yield
    finally:
        _is_shown = before
        _log.setLevel(level)
        _log.removeHandler(handler)


class _BareLines(logging.Handler):
    """Writes to what is standard error at that moment: above a progress line while one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(self.format(record))


class StageProgress:
    """Bar, count, rate, MB/s where bytes move, a note, ETA and end time of one stage.

    On a terminal one line is redrawn; elsewhere (a log file, CI) a plain line appears at most
    every 15 seconds and once at the end. Nothing appears outside of `show_progress`. The ETA comes
    once the rate after a warm-up is known.
    """

    def __init__(
        self,
        name: str,
        *,
        total: int,
        unit: str,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.total = total  # units of work in all
        self.unit = unit  # their name, in plural
        self._first = self._done = done  # units; some an earlier call has done already
        self.nbytes = 0  # moved so far
        self._note = ""
        self._detail = ""
        self._is_over = False
        self._printed = ""  # the last plain line
        self._clock = clock
        self._warm: tuple[float, int] | None = None  # when the warm-up ended, and units until then
        self._started = self._printed_at = clock()
        console = Console(stderr=True)
        self._width = console.width
        self._bar = Progress(
            TextColumn("{task.description:<14}", markup=False),
            *([BarColumn(bar_width=_BAR)] if self._width >= _WIDE else []),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=console,
        )
        self._is_drawn = _is_shown and console.is_terminal
        self._is_plain = _is_shown and not console.is_terminal
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8)
        self._task = self._bar.add_task(name, total=total, completed=done, status="")

    def __enter__(self) -> StageProgress:
        if self._is_drawn:
            self._live.start()
        self._started = self._printed_at = self._clock()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over = True
        self._bar.update(self._task, status=self.status(most=self._room()))
        if self._is_drawn:
            self._live.stop()
        elif self._done > self._first:
            self._print()

    def advance(
        self, count: int = 1, *, nbytes: int = 0, note: str | None = None, detail: str | None = None
    ) -> None:
        """`count` more units are done, `nbytes` more bytes were moved.

        `note`, a few words for the line, and `detail`, a second line, are kept until the next.
        """
        self._done += count
        now = self._clock()
        if self._warm is None and now - self._started >= _WARM_UP:
            self._warm = now, self._done
        self.total = max(self.total, self._done)  # there may be more work than was known
        self.nbytes += nbytes
        self._note = self._note if note is None else note
        self._detail = self._detail if detail is None else printable(detail)
        self._show()

    def note(self, note: str) -> None:
        """Change the words of the line where no unit was done, from any thread."""
        self._note = note
        self._show()

    def settle(self, note: str) -> None:
        """No more units will come: what the total has beyond them is somebody else's work."""
        self.total = self._done
        self.note(note)

    def _room(self) -> int:
        """Characters of a terminal's line that name, bar and count leave."""
        bar = _BAR + 1 if self._width >= _WIDE else 0
        return self._width - max(len(self.name), 14) - bar - 2 * len(str(self.total)) - 4

    def status(self, *, most: int | None = None) -> str:
        """Rate, bytes, note, elapsed and remaining time, as shown; the needless go for `most`."""
        now = self._clock()
        elapsed = max(now - self._started, 1e-6)
        steady = None if self._is_over else self._steady_rate(now)
        rate = (self._done - self._first) / elapsed if steady is None else steady
        parts = {"rate": f"{rate:.1f} {self.unit}/s"}
        if self.nbytes:
            parts["bytes"] = f"{self.nbytes / elapsed / 1e6:.1f} MB/s"
        if self._note:
            parts["note"] = self._note
        parts["gone"] = f"{format_seconds(elapsed)} gone"
        left = self.total - self._done
        if left > 0 and steady is not None:
            end = datetime.datetime.now() + datetime.timedelta(seconds=left / steady)
            parts["left"] = f"{format_seconds(left / steady)} left"
            parts["end"] = f"ends {end:%H:%M}"
        return printable(_join(parts, most))

    def _steady_rate(self, now: float) -> float | None:
        """Units per second since the warm-up; None while that says too little."""
        if self._warm is None:
            return None
        since, before = self._warm
        if now - since < _LEAST or self._done == before:
            return None
        return (self._done - before) / (now - since)

    def _show(self) -> None:
        self._bar.update(self._task, completed=self._done, total=self.total)
        self._bar.update(self._task, status=self.status(most=self._room()))
        if self._clock() - self._printed_at >= _PLAIN_INTERVAL:
            self._print()

    def _render(self) -> RenderableType:
        if not self._detail:
            return self._bar
        return Group(self._bar, Text(f"  {self._detail}", style="dim"))

    def _print(self) -> None:
        if not self._is_plain:
            return
        self._printed_at = self._clock()
        detail = f"  ({self._detail})" if self._detail else ""
        line = f"{self.name}: {self._done}/{self.total}  {self.status()}{detail}"
        if line != self._printed:  # the end may come in the second of the line before
            tell(line)
        self._printed = line


def _join(parts: dict[str, str], most: int | None) -> str:
    """In one line of at most so many characters, as far as leaving out parts can do it."""
    kept = dict(parts)
    for needless in ("", "bytes", "end", "gone", "rate"):
        kept.pop(needless, None)
        line = "  ".join(kept.values()).replace(" left  ends", " left, ends")
        if most is None or len(line) <= most:
            break
    return line


def tell(text: object) -> None:
    """Write one line to standard error; what a name in it holds begins no other."""
    print(printable(text), file=sys.stderr)


def count_of(number: int, noun: str) -> str:
    """``1, "block"`` -> ``1 block``; ``2, "block"`` -> ``2 blocks``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_seconds(seconds: float) -> str:
    """``75`` -> ``1:15``; ``3700`` -> ``1:01:40``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"

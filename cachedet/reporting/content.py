"""What a report is made of before it becomes HTML or Markdown, and how figures are written in it.

All text is plain text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cachedet.evaluation.significance import Interval
from cachedet.reporting.charts import Chart

ABSENT = "–"
MINUS = "−"
UNDECIDED = "these images cannot tell the runs apart"
Tone = Literal["", "better", "worse", "faint"]
Track = tuple[float, float, float]
"""Low, value and high of a figure."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table."""

    text: str
    note: str = ""  # a smaller second line
    tone: Tone = ""
    bar: float | None = None  # 0..1, drawn beside the text
    shade: float | None = None  # 0..1, behind the text
    is_name: bool = False  # flush left, and broken where it is long
    rank: float | None = None  # what the column is sorted by; None: always last

    @property
    def plain(self) -> str:
        """Both lines as one."""
        return f"{self.text} ({self.note})" if self.note else self.text


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a table; `name` is its header."""

    name: str
    cells: tuple[Cell, ...]
    note: str = ""  # a smaller second line under the name
    group: bool = False  # a line above a group of lines, without cells
    same: bool = False  # all cells say the same: the first stands for all


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose first column names the rows."""

    caption: str
    corner: str  # what the first column holds
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    sortable: bool = False
    numeric: bool = True  # False: texts, set flush left
    dense: bool = False  # many narrow columns

    @property
    def is_long(self) -> bool:
        """Whether it scrolls inside a frame of its own."""
        return self.sortable and len(self.rows) > 24


@dataclass(frozen=True, kw_only=True)
class Fold:
    """What is folded away until somebody opens it."""

    title: str
    table: Table | None = None
    text: str | None = None  # as a file has it, line by line
    is_open: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands under it."""

    key: str  # of the link to it
    title: str
    short: str  # title in the list of contents
    leads: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    folds: tuple[Fold, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One run's figure above everything else."""

    run: str
    value: str
    interval: str
    interval_name: str = "95 % interval"
    verdict: str  # against the first run; empty for itself
    tone: Tone = ""
    track: Track | None = None  # on a scale of 0..1


@dataclass(frozen=True, kw_only=True)
class Report:
    """The whole page but for the images."""

    title: str
    standfirst: str
    headlines: tuple[Headline, ...]
    sections: tuple[Section, ...]  # before the images
    last: tuple[Section, ...] = ()  # after them
    version: str
    written: str  # date
    kind: str = "report"
    has_images: bool = True  # whether the page has a place for them, be it empty


def figure(value: float | None, *, digits: int = 3) -> str:
    """Write 0.324, or a dash where there was nothing to score."""
    return ABSENT if value is None or math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float, *, digits: int = 3) -> str:
    """Write +0.012 or −0.004; 0.000 has no sign."""
    if math.isnan(value):
        return ABSENT
    text = f"{abs(value):.{digits}f}"
    if not float(text):
        return text
    return f"{'+' if value > 0 else MINUS}{text}"


def span(low: float, high: float, *, absent: str = ABSENT) -> str:
    """Write 0.296–0.351."""
    return absent if math.isnan(low) else f"{low:.3f}–{high:.3f}"


def signed_span(low: float, high: float) -> str:
    """Write −0.004 to +0.031."""
    return ABSENT if math.isnan(low) else f"{signed(low)} to {signed(high)}"


def rank_of(value: float) -> float | None:
    """What a column is sorted by: figures that do not exist come last."""
    return None if math.isnan(value) else value


def verdict(difference: Interval) -> str:
    """What the interval of a difference allows to say of the run against the first."""
    if math.isnan(difference.low):
        return "nothing to compare"
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else UNDECIDED


def tracks_of(
    figures: Sequence[Track], *, scale: tuple[float, float] | None = None
) -> list[Track | None]:
    """Put each on a scale of 0..1: `scale`, or what all of them span with some room.

    None for a figure that does not exist.
    """
    ends = [end for low, _, high in figures for end in (low, high) if not math.isnan(end)]
    if scale is None and ends:
        room = max(max(ends) - min(ends), 0.01) / 4
        scale = min(ends) - room, max(ends) + room
    start, stop = scale or (0.0, 1.0)
    return [
        None
        if math.isnan(low)
        else ((low - start) / (stop - start), (value - start) / (stop - start),
              (high - start) / (stop - start))
        for low, value, high in figures
    ]  # fmt: skip


def count(value: float) -> str:
    """Write 12,345."""
    return f"{value:,.0f}"


def count_classes(number: int) -> str:
    """Write 1 class, 1,203 classes."""
    return f"{count(number)} {'class' if number == 1 else 'classes'}"


def duration(seconds: float) -> str:
    """Write 42 s, 7.5 min, 3.2 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"

"""How figures are written on a page, and what an interval allows to say."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cachedet.evaluation.significance import Interval

ABSENT = "–"
MINUS = "−"
UNDECIDED = "these images cannot tell the runs apart"
Track = tuple[float, float, float]
"""Low, value and high of a figure."""


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

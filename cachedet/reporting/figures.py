"""How figures are written on the page and in Markdown."""

from __future__ import annotations

import math

from cachedet.evaluation.significance import Interval

UNDECIDED = "these pictures cannot tell the runs apart"
ABSENT = "–"
MINUS = "−"


def figure(value: float | None, *, digits: int = 3) -> str:
    """Such as 0.324; a dash where there was nothing to score."""
    return ABSENT if value is None or math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float, *, digits: int = 3) -> str:
    """Such as +0.012 or −0.004; 0.000 has no sign."""
    if math.isnan(value):
        return ABSENT
    text = f"{abs(value):.{digits}f}"
    if not float(text):
        return text
    return f"{'+' if value > 0 else MINUS}{text}"


def span(interval: Interval) -> str:
    """Such as 0.296–0.351."""
    if math.isnan(interval.low):
        return ABSENT
    return f"{interval.low:.3f}–{interval.high:.3f}"


def signed_span(interval: Interval) -> str:
    """Such as −0.004 to +0.031."""
    if math.isnan(interval.low):
        return ABSENT
    return f"{signed(interval.low)} to {signed(interval.high)}"


def verdict(difference: Interval) -> str:
    """What the interval of a difference allows to say of the run against the first."""
    if math.isnan(difference.low):
        return "nothing to compare"
    if difference.low > 0:
        return "better"
    if difference.high < 0:
        return "worse"
    return UNDECIDED


def count(value: float) -> str:
    """Such as 12,345."""
    return f"{value:,.0f}"


def count_classes(number: int) -> str:
    """Such as 1 class, 1,203 classes."""
    return f"{count(number)} {'class' if number == 1 else 'classes'}"


def duration(seconds: float) -> str:
    """Such as 42 s, 7.5 min, 3.2 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"

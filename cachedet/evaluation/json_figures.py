"""How a figure that may be undefined is written as JSON, which knows no NaN."""

from __future__ import annotations

import math


def or_null(value: float) -> float | None:
    """The figure, or None (JSON's null) where it is NaN: there was nothing to score."""
    return None if math.isnan(value) else value

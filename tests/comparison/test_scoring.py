"""What a cell says of its curve."""

from __future__ import annotations

import math

import pytest

from cachedet.comparison.scoring import late_rise
from cachedet.reporting.scored_run import TrainingPoint


def curve(**ap_at: float | None) -> list[TrainingPoint]:
    """``s20=0.1``: AP after 20 steps; None where a row has only a loss."""
    return [TrainingPoint(step=int(at[1:]), loss=1.0, val_ap=ap) for at, ap in ap_at.items()]


def test_what_ap_gained_in_the_last_quarter() -> None:
    every = curve(s25=0.1, s50=0.2, s60=None, s75=0.3, s100=0.34)
    assert late_rise(every, steps=100, ap=0.35) == pytest.approx(0.05)  # the last score counts
    assert late_rise(curve(s50=0.2), steps=100, ap=0.4) == pytest.approx(0.1)  # half of the way
    assert late_rise(curve(s90=0.2), steps=100, ap=0.4) == pytest.approx(0.2)  # at least so much
    assert late_rise(curve(s75=0.3, s50=0.2), steps=100, ap=0.2) == pytest.approx(-0.1)


def test_one_score_says_nothing_of_a_rise() -> None:
    assert math.isnan(late_rise([], steps=100, ap=0.4))
    assert math.isnan(late_rise(curve(s50=None, s100=0.4), steps=100, ap=0.4))
    assert math.isnan(late_rise(curve(s50=0.2), steps=100, ap=math.nan))

"""How figures are written."""

from __future__ import annotations

import math

import pytest

from cachedet.evaluation.significance import Interval
from cachedet.reporting.figures import duration, figure, signed, signed_span, span, verdict


def interval(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high, share_above_zero=0.5)


def test_what_does_not_exist_is_a_dash() -> None:
    assert [figure(math.nan), figure(None), signed(math.nan)] == ["–"] * 3
    assert [span(math.nan, math.nan), signed_span(math.nan, math.nan)] == ["–"] * 2
    assert span(math.nan, math.nan, absent="") == ""
    assert verdict(interval(math.nan, math.nan, math.nan)) == "nothing to compare"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "+0.012"), (-0.0123, "−0.012"), (0.0, "0.000"), (-1e-9, "0.000")]
)
def test_differences_have_signs_but_zero_has_none(value: float, text: str) -> None:
    assert signed(value) == text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.001, 0.1, "better"),
        (-0.1, -0.001, "worse"),
        (-0.1, 0.1, "these images cannot tell the runs apart"),
        (0.0, 0.1, "these images cannot tell the runs apart"),
        (-0.1, 0.0, "these images cannot tell the runs apart"),
    ],
)
def test_only_an_interval_without_zero_is_a_verdict(low: float, high: float, expected: str) -> None:
    assert verdict(interval(0.0, low, high)) == expected


def test_intervals_and_durations() -> None:
    assert span(0.4, 0.6) == "0.400–0.600"
    assert signed_span(-0.004, 0.031) == "−0.004 to +0.031"
    assert [duration(42), duration(450), duration(11520)] == ["42 s", "7.5 min", "3.2 h"]

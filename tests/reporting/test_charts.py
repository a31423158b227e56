"""Scales and paths of charts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedet.reporting.charts import Series, axis_from_zero, draw_chart, path_of, unit_axis


@given(st.floats(1e-6, 1e9))
def test_an_axis_holds_its_highest_value_in_few_steps(highest: float) -> None:
    axis = axis_from_zero("step", highest)
    assert axis.low == 0
    assert axis.high >= highest * (1 - 1e-9)
    assert axis.high <= 2 * highest * (1 + 1e-9)
    assert 2 <= len(axis.ticks) <= 6
    assert axis.ticks[0] == 0
    assert math.isclose(axis.ticks[-1], axis.high)


@pytest.mark.parametrize("highest", [0.0, -1.0, math.nan, math.inf])
def test_an_axis_of_nothing_is_from_0_to_1(highest: float) -> None:
    assert axis_from_zero("loss", highest).high == 1.0


def test_a_path_runs_from_corner_to_corner() -> None:
    x, y = unit_axis("recall"), unit_axis("precision")
    assert path_of([(0, 0), (1, 1)], x=x, y=y) == "M42.0 202.0L348.0 14.0"
    assert path_of([], x=x, y=y) == ""
    assert path_of([(-5, 7)], x=x, y=y) == "M42.0 14.0"  # what lies outside stops at the edge


def test_lines_differ_by_their_dashes_not_by_colour_alone() -> None:
    series = [Series(name=str(n), points=[(0, n / 4), (1, 1)]) for n in range(4)]
    x, y = unit_axis("recall"), unit_axis("precision")
    chart = draw_chart("key", "title", "words", x=x, y=y, series=series)
    assert len({line.dash for line in chart.lines}) == 4
    assert [line.accent for line in chart.lines] == [True, False, False, False]
    assert [text for _, text in chart.x_ticks] == ["0", "0.25", "0.5", "0.75", "1"]


def test_thousands_are_short() -> None:
    axis = axis_from_zero("step", 12_000)
    assert [axis.text_of(tick) for tick in axis.ticks] == [
        "0",
        "2.5k",
        "5k",
        "7.5k",
        "10k",
        "12.5k",
    ]

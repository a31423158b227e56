"""Phases: hand-computed seconds."""

from __future__ import annotations

import pytest

from cachedet.estimation.measured import Phase

PHASE = Phase(seconds=12.0, stages={"decode": 4.0, "backbone": 10.0})


def test_the_longest_stage_is_the_bottleneck() -> None:
    assert PHASE.bottleneck == "backbone"


def test_more_work_takes_longer_in_every_stage() -> None:
    assert PHASE.times(2.5) == Phase(seconds=30.0, stages={"decode": 10.0, "backbone": 25.0})


def test_a_faster_stage_leaves_the_next_one() -> None:
    """12 s are 1.2 times the longest stage, before and after: 1.2 * 4."""
    faster = PHASE.scaled({"backbone": 0.1})
    assert faster.stages == {"decode": 4.0, "backbone": 1.0}
    assert faster.seconds == pytest.approx(4.8)
    assert faster.bottleneck == "decode"


def test_unknown_stages_are_left_out_of_scaling() -> None:
    assert PHASE.scaled({"disk": 7.0}) == PHASE


@pytest.mark.parametrize(("seconds", "expected"), [(3.0, 12.0), (30.0, 30.0)])
def test_a_stage_that_takes_at_least_so_long(seconds: float, expected: float) -> None:
    phase = PHASE.at_least("disk", seconds)
    assert phase.seconds == expected
    assert phase.stages == {"decode": 4.0, "backbone": 10.0, "disk": seconds}


def test_at_least_never_shortens_a_stage() -> None:
    assert PHASE.at_least("backbone", 2.0) == PHASE


def test_a_phase_of_nothing_can_be_scaled() -> None:
    nothing = Phase(seconds=0.0, stages={"backbone": 0.0})
    assert nothing.scaled({"backbone": 5.0}) == nothing

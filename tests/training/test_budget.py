"""Budgets of time: how many steps they hold, by hand, and schedules that end with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cachedet.training.optimizer import LearningRate
from cachedet.training.stopping import TimeBudget


def test_the_pace_so_far_tells_the_steps() -> None:
    budget = TimeBudget(seconds=100.0)
    assert budget.total_steps(done=0, spent=0.0, planned=70) == 70
    assert budget.total_steps(done=1, spent=1.0, planned=70) == 70  # too early to tell
    assert budget.total_steps(done=10, spent=25.0, planned=70) == 40  # 10 in a quarter of the time
    assert not budget.is_spent(99.9)
    assert budget.total_steps(done=55, spent=100.0, planned=70) == 55
    assert budget.is_spent(100.0)


def test_more_than_the_budget_is_over() -> None:
    budget = TimeBudget(seconds=10.0)
    assert budget.is_spent(12.0)
    assert budget.total_steps(done=30, spent=12.0, planned=5) == 30


@pytest.mark.parametrize("kind", ["cosine", "step"])
def test_a_stretched_schedule_is_one_of_that_length(kind: str) -> None:
    options = {"peak": 0.1, "kind": kind, "drops": (0.5, 0.9)}
    rate = LearningRate(total_steps=100, warmup_steps=20, **options)  # type: ignore[arg-type]
    longer = LearningRate(total_steps=400, warmup_steps=20, **options)  # type: ignore[arg-type]
    assert [rate.stretched(400).at(n) for n in range(400)] == [longer.at(n) for n in range(400)]
    assert rate.stretched(30).stretched(400) == rate.stretched(400)


def rates_of(pace: Callable[[int], float], *, seconds: float, rate: LearningRate) -> list[float]:
    """Of each step until the budget is spent; `pace`: seconds of a step, from those done before."""
    budget, spent, rates = TimeBudget(seconds=seconds), 0.0, []
    while not budget.is_spent(spent):
        rates.append(rate.at(len(rates)))
        spent += pace(len(rates) - 1)
        total = budget.total_steps(done=len(rates), spent=spent, planned=rate.total_steps)
        rate = rate.stretched(total)
    return rates


def test_a_cosine_that_is_stretched_at_every_step_ends_at_nothing() -> None:
    """Steps become twice as slow in the middle of the budget."""
    rate = LearningRate(peak=1.0, total_steps=1000, warmup_steps=10, kind="cosine")
    rates = rates_of(lambda done: 0.5 if done < 100 else 1.0, seconds=100.0, rate=rate)
    assert len(rates) == 150
    assert rates[-1] < 0.001
    assert max(rates) == pytest.approx(1.0, abs=0.01)


def test_a_warm_up_survives_slow_first_steps() -> None:
    """They tell of so few steps that the whole run seems shorter than its warm-up."""
    rate = LearningRate(peak=1.0, total_steps=2000, warmup_steps=500, kind="cosine")
    rates = rates_of(lambda done: 5.0 if done < 4 else 0.3, seconds=600.0, rate=rate)
    assert len(rates) == 4 + 1934
    assert rates[100:500] == pytest.approx([rate.at(step) for step in range(100, 500)])
    assert rates[-1] < 0.001

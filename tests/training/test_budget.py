"""Budgets of time: how many steps they hold, by hand, and schedules that end with them."""

from __future__ import annotations

import pytest

from cachedet.training.budget import TimeBudget
from cachedet.training.schedule import LearningRate


def test_the_pace_so_far_tells_the_steps() -> None:
    budget = TimeBudget(seconds=100.0)
    assert budget.total_steps(done=0, planned=70) == 70
    budget.add(1.0)
    assert budget.total_steps(done=1, planned=70) == 70  # too early to tell
    budget.add(24.0)
    assert budget.total_steps(done=10, planned=70) == 40  # 10 in a quarter of the time
    budget.add(75.0)
    assert budget.total_steps(done=55, planned=70) == 55
    assert budget.is_spent


def test_more_than_the_budget_is_over() -> None:
    budget = TimeBudget(seconds=10.0, spent=12.0)
    assert budget.is_spent
    assert budget.total_steps(done=30, planned=5) == 30


@pytest.mark.parametrize("kind", ["cosine", "step"])
def test_a_stretched_schedule_is_one_of_that_length(kind: str) -> None:
    options = {"peak": 0.1, "kind": kind, "drops": (0.5, 0.9)}
    rate = LearningRate(total_steps=100, warmup_steps=20, **options)  # type: ignore[arg-type]
    longer = LearningRate(total_steps=400, warmup_steps=20, **options)  # type: ignore[arg-type]
    assert [rate.stretched(400).at(n) for n in range(400)] == [longer.at(n) for n in range(400)]
    assert rate.stretched(30).warmup_steps == 15


def test_a_cosine_that_is_stretched_at_every_step_ends_at_nothing() -> None:
    """Steps become twice as slow in the middle of the budget."""
    rate = LearningRate(peak=1.0, total_steps=1000, warmup_steps=10, kind="cosine")
    budget, done, rates = TimeBudget(seconds=100.0), 0, []
    while not budget.is_spent:
        rates.append(rate.at(done))
        budget.add(0.5 if budget.spent < 50 else 1.0)
        done += 1
        rate = rate.stretched(budget.total_steps(done=done, planned=rate.total_steps))
    assert done == 150
    assert rates[-1] < 0.001
    assert max(rates) == pytest.approx(1.0, abs=0.01)

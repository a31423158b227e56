from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cachedet.config.schedule import LearningRate
from cachedet.progress import show_progress
from cachedet.training.stopping import (
    EarlyStopping,
    StoppedAtOnce,
    StopRequested,
    StopSignals,
    TimeBudget,
)

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signals here")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT"])
def test_a_signal_leaves_a_note(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with show_progress(), StopSignals() as signals:
        assert signals.received is None
        signals.raise_if_received()
        os.kill(os.getpid(), number)
        assert signals.received == name
        with pytest.raises(StopRequested, match=name):
            signals.raise_if_received()
    assert signal.getsignal(number) is before
    assert f"{name}: finishing the step and saving" in capfd.readouterr().err


def test_a_second_interrupt_stops_at_once_a_second_sigterm_does_not() -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signals.received == "SIGTERM"


def test_what_the_outer_one_noted_the_inner_one_knows() -> None:
    """And what came inside is known outside."""
    with StopSignals() as outer:
        with StopSignals() as quiet:
            assert quiet.received is None
        with StopSignals() as inner:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert (inner.received, outer.received) == ("SIGUSR1", None)
        assert outer.received == "SIGUSR1"
        with StopSignals() as later:
            assert later.received == "SIGUSR1"


def test_a_start_is_left_at_once_and_only_once() -> None:
    with StopSignals(at_once=True) as signals:
        with pytest.raises(StoppedAtOnce, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
        assert signals.has_raised
        signal.raise_signal(signal.SIGTERM)  # while it ends
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def fail_inside() -> None:
        with StopSignals():
            assert signal.getsignal(signal.SIGTERM) is not before
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail_inside()
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.received is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_install_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with StopSignals() as signals:
            seen.extend([signal.getsignal(signal.SIGTERM), signals.received])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, None]


def stops_after(values: list[float], **changes: Any) -> int | None:
    """How many values it takes until the run is over."""
    stopping = EarlyStopping(**{"metric": "ap", "patience": 2, "min_delta": 0.0, **changes})
    for number, value in enumerate(values, start=1):
        stopping.observe(value)
        if stopping.is_exhausted:
            return number
    return None


@pytest.mark.parametrize(
    ("values", "changes", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], {}, None),
        ([0.3, 0.2, 0.1], {}, 3),
        ([0.3, 0.3, 0.3], {}, 3),  # equal is no improvement
        ([0.3, 0.2, 0.4, 0.3, 0.2], {}, 5),  # the count starts anew
        ([0.3, 0.305, 0.309], {"min_delta": 0.01}, 3),
        ([0.3, 0.305, 0.311, 0.2], {"min_delta": 0.01}, None),  # small gains add up
        ([3.0, 2.0, 1.0], {"metric": "loss"}, None),
        ([1.0, 2.0, 3.0], {"metric": "loss"}, 3),
        ([0.3, 0.2], {"patience": 1}, 2),
        ([math.nan, math.nan], {}, 2),
        ([0.3, math.nan, 0.4, 0.1], {}, None),
    ],
)
def test_by_hand(values: list[float], changes: dict[str, Any], expected: int | None) -> None:
    assert stops_after(values, **changes) == expected


def test_says_why() -> None:
    stopping = EarlyStopping(metric="ap50", patience=2, min_delta=0.0)
    for value in (0.5, 0.4, 0.45):
        stopping.observe(value)
    assert stopping.describe() == (
        "ap50 was best at 0.5 and did not improve in the last 2 validations"
    )
    losses = EarlyStopping(metric="loss", patience=1, min_delta=0.0)
    losses.observe(math.nan)
    assert losses.describe() == ("loss never had a value and did not improve in the last 1 epochs")


def test_continues_counting_unless_the_metric_changed() -> None:
    stopping = EarlyStopping(metric="ap", patience=3, min_delta=0.0)
    for value in (0.5, 0.4):
        stopping.observe(value)
    same = EarlyStopping(metric="ap", patience=3, min_delta=0.0)
    same.load_state_dict(stopping.state_dict())
    assert (same.best, same.misses) == (0.5, 1)
    other = EarlyStopping(metric="ap75", patience=3, min_delta=0.0)
    other.load_state_dict(stopping.state_dict())
    assert (other.best, other.misses) == (None, 0)
    other.load_state_dict(None)  # a checkpoint without early stopping
    assert other.misses == 0


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


def make_rate(**values: Any) -> LearningRate:
    return LearningRate(warmup_from=0.02, **values)


@pytest.mark.parametrize("kind", ["cosine", "step"])
def test_a_stretched_schedule_is_one_of_that_length(kind: str) -> None:
    rate = make_rate(peak=0.1, total_steps=100, warmup_steps=20, kind=kind, drops=(0.5, 0.9))
    longer = replace(rate, total_steps=400)
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
    rate = make_rate(peak=1.0, total_steps=1000, warmup_steps=10, kind="cosine")
    rates = rates_of(lambda done: 0.5 if done < 100 else 1.0, seconds=100.0, rate=rate)
    assert len(rates) == 150
    assert rates[-1] < 0.001
    assert max(rates) == pytest.approx(1.0, abs=0.01)


def test_a_warm_up_survives_slow_first_steps() -> None:
    """They tell of so few steps that the whole run seems shorter than its warm-up."""
    rate = make_rate(peak=1.0, total_steps=2000, warmup_steps=500, kind="cosine")
    rates = rates_of(lambda done: 5.0 if done < 4 else 0.3, seconds=600.0, rate=rate)
    assert len(rates) == 4 + 1934
    assert rates[100:500] == pytest.approx([rate.at(step) for step in range(100, 500)])
    assert rates[-1] < 0.001

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.training.optimizer import LearningRate


def test_the_papers_schedule_by_hand() -> None:
    rate = LearningRate(
        peak=0.32, total_steps=33264, warmup_steps=500, kind="step", drops=(48 / 72, 68 / 72)
    )
    assert rate.at(0) == pytest.approx(0.0067)
    assert rate.at(250) == pytest.approx((0.0067 + 0.32) / 2)
    assert rate.at(500) == rate.at(22175) == 0.32
    assert rate.at(22176) == pytest.approx(0.032)
    assert rate.at(31416) == pytest.approx(0.0032)


def test_cosine_by_hand() -> None:
    rate = LearningRate(peak=1.0, total_steps=110, warmup_steps=10, kind="cosine")
    assert rate.at(10) == 1.0
    assert rate.at(60) == pytest.approx(0.5)
    assert rate.at(110) == pytest.approx(0.0)
    assert rate.at(500) == pytest.approx(0.0)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.integers(1, 400), st.integers(0, 400), st.sampled_from(["cosine", "step"]))
def test_rises_then_falls_within_the_peak(total: int, warmup: int, kind: str) -> None:
    rate = LearningRate(
        peak=0.1, total_steps=total, warmup_steps=warmup, kind=kind, drops=(0.5, 0.9)
    )
    rates = [rate.at(step) for step in range(total)]
    warmup = min(warmup, total // 2)
    assert all(0 <= value <= 0.1 for value in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_wrong_values() -> None:
    with pytest.raises(ValueError, match="expected warmup_steps >= 0, got -1"):
        LearningRate(peak=1.0, total_steps=5, warmup_steps=-1, kind="step")
    with pytest.raises(ValueError, match="expected peak > 0 and total_steps >= 1, got 0.0 and 5"):
        LearningRate(peak=0.0, total_steps=5, warmup_steps=0, kind="step")

from __future__ import annotations

import math
from typing import Any

import pytest

from cachedet.training.stopping import EarlyStopping


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

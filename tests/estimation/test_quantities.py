"""Numbers with units, and what is refused."""

from __future__ import annotations

import pytest

from cachedet.errors import InputError
from cachedet.estimation.what_if import parse_count, parse_flops, parse_rate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500MB/s", 5e8),
        ("1.5 GB/s", 1.5e9),
        ("800kb", 8e5),
        ("7B/s", 7.0),
        ("2e3MB/s", 2e9),
        (".5GB/s", 5e8),
    ],
)
def test_rates(text: str, expected: float) -> None:
    assert parse_rate(text, where="x") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"), [("60T", 6e13), ("60TFLOPS", 6e13), ("300 gflop/s", 3e11), ("1e12", 1e12)]
)
def test_flops(text: str, expected: float) -> None:
    assert parse_flops(text, where="x") == pytest.approx(expected)


@pytest.mark.parametrize(("text", "expected"), [("118k", 118_000), ("800", 800), ("1.5k", 1500)])
def test_counts(text: str, expected: int) -> None:
    assert parse_count(text, where="x") == expected


@pytest.mark.parametrize("text", ["500", "500Mbit/s", "fast", "0MB/s", "-5MB/s", "", "nanMB/s"])
def test_no_rate(text: str) -> None:
    with pytest.raises(InputError, match=r"^--what-if disk: expected .*500MB/s|above 0"):
        parse_rate(text, where="--what-if disk")


@pytest.mark.parametrize("text", ["60X", "T", "inf", "0T", "1e400T"])
def test_no_flops(text: str) -> None:
    with pytest.raises(InputError, match=r"^--what-if device-flops: expected .*60T|above 0"):
        parse_flops(text, where="--what-if device-flops")


@pytest.mark.parametrize("text", ["0", "1.5", "many", "3 apples", "-4"])
def test_no_count(text: str) -> None:
    with pytest.raises(InputError, match="--what-if pictures: expected"):
        parse_count(text, where="--what-if pictures")

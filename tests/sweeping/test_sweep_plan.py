"""What the command line may ask of a search."""

from __future__ import annotations

import pytest

from cachedet.errors import InputError
from cachedet.sweeping.sweep_plan import (
    Objective,
    parse_objective,
    parse_parallel,
    parse_pruner,
    parse_sampler,
)


def test_objectives() -> None:
    assert parse_objective("AP") == Objective()
    assert parse_objective("ar100") == Objective(figure="ar100")
    both = parse_objective("AP50, seconds")
    assert (both.names, both.directions) == (("ap50", "seconds"), ("maximize", "minimize"))
    assert parse_pruner(None, both) == "none"
    assert parse_pruner(None, Objective()) == "halving"
    assert parse_sampler("random") == "random"


@pytest.mark.parametrize("text", ["", "seconds", "AP,AR100", "AP,seconds,ap", "num_images"])
def test_no_objective(text: str) -> None:
    with pytest.raises(InputError, match="--objective expects a figure, or one and seconds"):
        parse_objective(text)


def test_the_nearest_is_named() -> None:
    with pytest.raises(InputError, match="nearest: 'ap50'"):
        parse_objective("apfifty0")
    with pytest.raises(InputError, match="--sampler expects one of tpe, random, got 'tp'"):
        parse_sampler("tp")
    with pytest.raises(InputError, match="--pruner expects one of hyperband, halving, none"):
        parse_pruner("median", Objective())
    with pytest.raises(InputError, match="also seeks fast ones"):
        parse_pruner("halving", Objective(seconds=True))


@pytest.mark.parametrize("text", ["0", "-1", "two", "1025", "9" * 5000, "1.5"])
def test_no_number_of_processes(text: str) -> None:
    with pytest.raises(InputError, match="--parallel expects a number of processes"):
        parse_parallel(text, "cpu")


def test_processes() -> None:
    assert parse_parallel("3", "cpu") == 3
    assert parse_parallel("auto", "cpu") >= 1

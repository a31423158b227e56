"""What is tried next follows from the seed and the trials before, whatever was killed between."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cachedet.errors import InputError
from cachedet.sweeping.parameters import Parameter
from cachedet.sweeping.sweep_plan import Rules, Space

pytest.importorskip("optuna", reason="pip install 'cachedet[sweep]'")
from cachedet.sweeping.study import SweepStudy

LR = Parameter(key="lr", low=1e-4, high=1e-2, log=True)
WIDTH = Parameter(key="width", choices=(8, 16, [1, 2]))
DEPTH = Parameter(key="depth", low=1, high=4, whole=True)
SPACE = Space(of_config={"one": (LR, WIDTH, DEPTH)})
EPOCHS = 9


def rules(**changes: Any) -> Rules:
    values: dict[str, Any] = {
        "sampler": "tpe", "pruner": "halving", "seed": 0, "directions": ("maximize",),
        "most_epochs": EPOCHS,
    }  # fmt: skip
    return Rules(**values | changes)


def reached(values: Mapping[str, Any], epoch: int) -> float:
    """AP of a training that was never made."""
    depth = values.get("depth", 99)
    return epoch * (1 - abs(values["lr"] - 2e-3) * 50 - 0.01 * depth) / EPOCHS


def train(study: SweepStudy, draw: Any, *, until: int = EPOCHS) -> None:
    for epoch in range(1, until + 1):
        is_last = epoch == EPOCHS
        if study.report(draw.number, epoch, reached(draw.values, epoch), is_last=is_last):
            break
    if until == EPOCHS:
        study.finish(draw.number, {"seconds": 1.0}, [reached(draw.values, EPOCHS)])


def tried(study: SweepStudy) -> list[Any]:
    return [
        (t.number, t.state.name, study.values_of(t.number).values, study.curve_of(t.number))
        for t in study.trials
    ]


@pytest.mark.parametrize("pruner", ["halving", "hyperband", "none"])
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_killed_at_any_moment_it_tries_the_same(tmp_path: Path, pruner: Any, sampler: Any) -> None:
    search = rules(pruner=pruner, sampler=sampler)
    whole = SweepStudy(tmp_path / "whole", search, SPACE)
    whole.begin_with("one", {"lr": 2e-3, "width": 8, "depth": 99})
    while len(whole.drawn()) < 16:
        train(whole, whole.ask())
    killed = SweepStudy(tmp_path / "killed", search, SPACE)
    while True:
        killed = SweepStudy(tmp_path / "killed", search, SPACE)
        killed.begin_with("one", {"lr": 2e-3, "width": 8, "depth": 99})
        begun = killed.running()
        if not begun and len(killed.drawn()) == 16:
            break
        if not begun:
            begun = [killed.ask()]
            train(killed, begun[0], until=begun[0].number % EPOCHS)  # and no further
        else:
            train(killed, begun[0])
    assert tried(killed) == tried(whole)
    assert killed.winner() == whole.winner()
    assert tried(whole)[0][2] == {"lr": 2e-3, "width": 8}  # the default's depth is not searched


@pytest.mark.parametrize("pruner", ["halving", "hyperband"])
def test_nothing_is_given_up_before_ap_tells_something(tmp_path: Path, pruner: Any) -> None:
    """The default learns from epoch 5 on and is at half of its AP after 7: there it begins."""
    study = SweepStudy(tmp_path / "study", rules(pruner=pruner), SPACE)
    study.begin_with("one", {"lr": 2e-3, "width": 8, "depth": 1})
    curve = (0.0, 0.0, 0.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    for number in range(12):
        assert study.ask().number == number
        better = 1.1 if number == 5 else 0.99**number
        for epoch, ap in enumerate(curve, start=1):
            if study.report(number, epoch, better * ap, is_last=epoch == EPOCHS):
                break
        study.finish(number, {}, [better * ap])
        study = SweepStudy(tmp_path / "study", rules(pruner=pruner), SPACE)  # another process
    ends = [study.curve_of(number)[-1][0] for number in range(12)]
    assert ends[0] == ends[5] == EPOCHS
    assert min(ends) == 7
    assert sum(end < EPOCHS for end in ends) >= 8


def test_a_default_that_fails_holds_nothing_up(tmp_path: Path) -> None:
    study = SweepStudy(tmp_path / "study", rules(), SPACE)
    study.begin_with("one", {"lr": 2e-3, "width": 8, "depth": 1})
    first, second = study.ask(), study.ask()
    assert not study.report(first.number, 1, 0.5, is_last=False)
    assert not study.report(second.number, 1, 0.1, is_last=False)  # the default is under way
    study.fail(first.number, "NaN")
    given_up = []
    for ap in (0.4, 0.3, 0.2):
        draw = study.ask()
        given_up.append(study.report(draw.number, 1, ap, is_last=False))
    assert given_up == [False, True, True]


def test_where_the_first_five_fail_no_more_are_tried(tmp_path: Path) -> None:
    study = SweepStudy(tmp_path / "study", rules(), SPACE)
    for number in range(5):
        assert not study.is_hopeless()
        study.fail(study.ask().number, f"NaN {number}")
    assert study.is_hopeless()
    other = SweepStudy(tmp_path / "other", rules(), SPACE)
    train(other, other.ask())
    for _ in range(5):
        other.fail(other.ask().number, "NaN")
    assert not other.is_hopeless()


def test_a_half_drawn_trial_is_drawn_to_its_end(tmp_path: Path) -> None:
    """Every prefix of the journal leads to the same trial."""
    study = SweepStudy(tmp_path / "whole", rules(), SPACE)
    drawn = study.ask()
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for count in range(len(lines)):
        journal = tmp_path / f"cut-{count}"
        journal.write_bytes(b"".join(lines[:count]) + lines[count][:9])  # a write was cut off
        journal.with_name(journal.name + ".lock").symlink_to(journal)
        again = SweepStudy(journal, rules(), SPACE)
        assert (again.running() or [again.ask()]) == [drawn]


def test_a_damaged_journal_is_said(tmp_path: Path) -> None:
    (tmp_path / "study").write_bytes(b"{}\n\x00\n")
    with pytest.raises(InputError, match="study is damaged .*; choose another --out"):
        SweepStudy(tmp_path / "study", rules(), SPACE)


def test_a_front_of_two_objectives(tmp_path: Path) -> None:
    study = SweepStudy(
        tmp_path / "study", rules(directions=("maximize", "minimize"), pruner="none"), SPACE
    )
    assert (study.winner(), study.best(), study.importances()) == (None, [], {})
    for ap, seconds in ((0.5, 9.0), (0.4, 2.0), (0.3, 5.0)):
        draw = study.ask()
        assert not study.report(draw.number, 1, ap, is_last=False)
        assert not study.report(draw.number, 2, ap, is_last=False)
        study.finish(draw.number, {}, [ap, seconds])
    assert study.best() == [0, 1]
    assert study.winner() == 0
    assert study.curve_of(2) == [(1, 0.3), (2, 0.3)]


def test_of_few_trials_or_one_parameter_nothing_mattered(tmp_path: Path) -> None:
    study = SweepStudy(tmp_path / "study", rules(pruner="none"), SPACE)
    while len(study.drawn()) < 9:
        train(study, study.ask())
    assert study.importances() == {}
    train(study, study.ask())
    assert study.importances() != {}
    alone = SweepStudy(tmp_path / "alone", rules(pruner="none"), Space(of_config={"one": (LR,)}))
    while len(alone.drawn()) < 12:
        train(alone, alone.ask())
    assert alone.importances() == {}


def test_what_mattered_and_what_it_took(tmp_path: Path) -> None:
    study = SweepStudy(tmp_path / "study", rules(pruner="none", sampler="random"), SPACE)
    while len(study.drawn()) < 30:
        train(study, study.ask())
    study.spend(2.0)
    study.spend(1.5)
    shares = study.importances()
    assert max(shares, key=lambda name: shares[name]) == "lr"
    assert sum(shares.values()) == pytest.approx(1)
    assert SweepStudy(tmp_path / "study", rules(), SPACE).seconds == 3.5

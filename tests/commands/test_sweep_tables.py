"""What `sweep` prints at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachedet.commands.sweep_tables import print_sweep
from cachedet.sweeping.sweep_results import SweepReport, TrialRecord


def report(*configs: str) -> SweepReport:
    trials = tuple(
        TrialRecord(
            number=number, state="complete", config=config, values={"schedule.lr": 0.0012345},
            objectives=(0.5 - number / 10,), curve=((1, 0.5),), seconds=3.0, images=100.0,
            error="", run=Path(f"out/{number}"),
        )
        for number, config in enumerate(configs)
    )  # fmt: skip
    return SweepReport(
        out=Path("out"), objectives=("ap",), space={}, trials=trials, best=(0,), winner=0,
        importances={}, choosing=40, reporting=40, finals=(), verdict=None, seconds=90.0,
        parallel=1, settings={}, notes=(), interrupted_by=None,
    )  # fmt: skip


def test_the_best_trials_of_one_config(capsys: pytest.CaptureFixture[str]) -> None:
    print_sweep(report("fpn", "fpn"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:4] == [
        ["trial", "AP", "values"],
        ["default", "0.500", "lr=0.00123"],
        ["1", "0.400", "lr=0.00123"],
    ]  # fmt: skip


def test_no_name_of_a_config_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_sweep(report("cascade_rcnn_nasfpn_tiny", "with_a_longer_name_than_any_preset"))
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines]
    assert rows[1] == ["trial", "AP", "config", "values"]
    assert rows[2] == ["default", "0.500", "cascade_rcnn_nasfpn_tiny", "lr=0.00123"]
    assert rows[3][2] + rows[4][0] == "with_a_longer_name_than_any_preset"
    assert max(map(len, lines)) <= 80

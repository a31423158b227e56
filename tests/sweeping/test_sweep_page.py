"""What the page of a sweep says and draws, before a browser shows it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cachedet.comparison.summary import spread_of
from cachedet.evaluation.significance import Interval
from cachedet.reporting.content import Report, Section
from cachedet.reporting.rendering import render_markdown, render_page
from cachedet.sweeping.next_steps import next_steps
from cachedet.sweeping.parameters import Parameter
from cachedet.sweeping.sweep_page import sweep_page
from cachedet.sweeping.sweep_plan import Space
from cachedet.sweeping.sweep_results import FinalRun, State, SweepReport, TrialRecord, Verdict

LR = Parameter(key="schedule.lr", low=1e-4, high=1e-2, log=True)
CHANNELS = Parameter(key="detector.neck.channels", choices=(16, 32, 64))
SPACE = Space(of_config={"fpn": (LR, CHANNELS)})
HOSTILE = "</script><script>alert(1)</script>"


def trial(
    number: int, ap: float, *, lr: float = 1e-3, channels: int = 32, state: State = "complete"
) -> TrialRecord:
    whole = state == "complete"
    curve = ((1, ap / 2), (2, ap - 0.002), (3, ap)) if whole else ((1, ap),)
    return TrialRecord(
        number=number,
        state=state,
        config="fpn",
        values={"schedule.lr": lr, "detector.neck.channels": channels},
        objectives=(ap,) if whole else (),
        curve=() if state == "failed" else curve,
        seconds=3.0,
        images=100.0,
        error=f"loss is not finite {HOSTILE}" if state == "failed" else "",
        run=Path(f"out/trials/{number:04d}"),
    )


def verdict(
    value: float = 0.1, low: float = 0.05, high: float = 0.15, judgement: Any = "better"
) -> Verdict:
    return Verdict(
        judgement=judgement,
        winner=spread_of([0.5, 0.52]),
        default=spread_of([0.4, 0.42]),
        difference=Interval(value=value, low=low, high=high, share_above_zero=0.9),
        images=40,
    )


def report(*trials: TrialRecord, **changes: Any) -> SweepReport:
    trials = trials or (
        trial(0, 0.4), trial(1, 0.5), trial(2, 0.1, state="pruned"), trial(3, 0.0, state="failed"),
        trial(4, 0.3, lr=2e-3),
    )  # fmt: skip
    whole = [each for each in trials if each.objectives]
    winner = max(whole, key=lambda each: each.objectives[0]).number if whole else None
    values: dict[str, Any] = {
        "out": Path("out"), "objectives": ("ap",), "space": SPACE.describe(), "trials": trials,
        "best": () if winner is None else (winner,), "winner": winner,
        "importances": {"schedule.lr": 0.75, "detector.neck.channels": 0.25}, "choosing": 40,
        "reporting": 40, "verdict": verdict(), "seconds": 90.0, "parallel": 1,
        "settings": {"sampler": "tpe", "seed": 0}, "notes": (), "interrupted_by": None,
        "finals": tuple(
            FinalRun(trial=side, seed=seed, ap=ap + seed / 100, run=Path(f"out/{side}-{seed}"))
            for side, ap in ((None, 0.4), (winner, 0.5)) for seed in (1, 2)
        ),
    }  # fmt: skip
    return SweepReport(**values | changes)


def page_of(of: SweepReport, space: Space = SPACE) -> Report:
    """Laid out, and rendered both ways without a complaint."""
    page = sweep_page(of, space)
    html = render_page(page, curves=(), sheet=None)
    assert "cachedet sweep</title>" in html
    assert HOSTILE not in html
    assert "nan" not in render_markdown(page)
    for section in (*page.sections, *page.last):
        assert section.leads or section.tables or section.charts, section.key
        for table in section.tables:
            assert all(len(row.cells) == len(table.columns) for row in table.rows), section.key
    return page


def section_of(page: Report, key: str) -> Section:
    return next(section for section in (*page.sections, *page.last) if section.key == key)


def test_the_verdict_is_on_top_and_the_final_seeds_stand_beside_the_defaults() -> None:
    page = page_of(report())
    assert page.standfirst.startswith("The winner is better than the default: winner 0.510")
    winner, default = page.headlines
    assert (winner.run, winner.value, winner.tone) == ("trial 1, the winner", "0.510", "better")
    assert (default.run, default.interval_name) == ("fpn, the default", "2 seeds")
    (table,) = section_of(page, "result").tables
    assert table.columns == ("trial 1", "default", "difference")
    assert [[cell.text for cell in row.cells] for row in table.rows] == [
        ["0.510", "0.410", "+0.100"], ["0.520", "0.420", "+0.100"], ["0.510", "0.410", "+0.100"],
    ]  # fmt: skip
    assert table.rows[-1].cells[-1].note == "+0.050 to +0.150"


def test_every_trial_is_drawn_and_listed() -> None:
    page = page_of(report())
    parallel, learning = section_of(page, "tried").charts
    names = [line.series.name for line in learning.lines]
    assert names == [
        "trial 1, the winner", "trial 0, the default", "others, stronger the higher AP", "given up",
    ]  # fmt: skip
    assert [line.series.tone for line in learning.lines] == [
        "winner", "default", "scaled", "scratch",
    ]  # fmt: skip
    assert len({line.dash for line in learning.lines}) == 3  # never by colour alone
    assert [line.path.count("L") for line in parallel.lines] == [2, 2, 2, 1]  # given up: no end
    heights = sorted({label.at[1] for label in parallel.labels})
    assert min(below - above for above, below in pairwise(heights)) > 15  # no text on another
    texts = [label.text for label in parallel.labels]
    assert texts[:7] == ["lr, log", "0.0001", "0.01", "neck.channels", "16", "32", "64"]
    table, failures = section_of(page, "trials").tables
    assert table.sortable
    assert [cell.text for cell in table.rows[2].cells] == [
        "given up", "0.100", "1", "3.0", "0.001", "32",
    ]  # fmt: skip
    assert table.rows[1].note == "the winner"
    assert failures.rows[0].name == "trial 3"
    (bars,) = section_of(page, "importance").tables
    assert [(row.name, row.cells[0].bar) for row in bars.rows] == [
        ("lr", 1.0), ("neck.channels", pytest.approx(1 / 3)),
    ]  # fmt: skip


def test_two_objectives_have_a_front() -> None:
    trials = [
        replace(trial(n, ap), objectives=(ap, 9.0 + n)) for n, ap in enumerate((0.2, 0.1, 0.5))
    ]
    page = page_of(report(*trials, objectives=("ap", "seconds"), best=(0, 2), importances={}))
    (chart,) = section_of(page, "front").charts
    assert [label.text for label in chart.labels] == ["0", "2"]
    assert [mark.spot.title for mark in chart.marks] == [
        "trial 0: 0.200 in 9.0 s", "trial 2: 0.500 in 11.0 s", "trial 1: 0.100 in 10.0 s",
    ]  # fmt: skip
    assert section_of(page, "importance").leads == ("Not known: two objectives.",)


def test_two_configs_have_rows_of_their_own() -> None:
    space = Space(of_config={"fpn": (LR,), "nas": (LR, CHANNELS)})
    other = replace(trial(1, 0.5), config="nas")
    page = page_of(report(trial(0, 0.4), other, space=space.describe(), importances={}), space)
    parallel = section_of(page, "tried").charts[0]
    assert [label.text for label in parallel.labels if label.anchor == "start"][:4] == [
        "config", "fpn", "fpn: lr, log", "0.0001",
    ]  # fmt: skip
    assert [line.path.count("M") for line in parallel.lines] == [2, 2]  # broken where it has none
    assert [len(line.dots) for line in parallel.lines] == [0, 1]  # its AP, behind rows of another


def test_a_page_without_a_verdict_claims_none() -> None:
    under_way = trial(5, 0.0, state="running")
    page = page_of(report(trial(0, 0.4), under_way, verdict=None, finals=(), interrupted_by="INT"))
    (lead,) = section_of(page, "result").leads
    assert lead == (
        "2 trials (1 trained to the end, 0 given up, 0 failed, 1 under way) in 1:30. "
        "40 images choose, 40 others report."
    )
    assert "## What was tried" not in render_markdown(page)  # charts alone
    failed = report(*(trial(n, 0.0, state="failed") for n in range(2)), verdict=None, finals=())
    assert not any("--trials 40" in step for step in next_steps(failed, SPACE))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"verdict": None, "finals": (), "interrupted_by": "SIGTERM"}, "No verdict yet: SIGTERM"),
        ({"verdict": None}, "No verdict: final runs failed"),
        ({"verdict": Verdict.of_default([0.4, 0.42], images=9)}, "The default is the best"),
        (
            {"trials": (trial(0, 0.0, state="failed"),), "winner": None, "best": (), "finals": (),
             "verdict": None, "importances": {}},
            "No verdict: no trial came",
        ),
        (
            {"trials": (), "winner": None, "best": (), "finals": (), "verdict": None},
            "No verdict: no trial came",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(changes: dict[str, Any], words: str) -> None:
    assert page_of(report(**changes)).standfirst.startswith(words)


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (report(), "Use the winner: out/1-1 is a run folder"),
        (report(), "5 trials is little"),
        (
            report(*(trial(n, 0.1, state="failed") for n in range(3)), verdict=None),
            "3 of 3 trials failed, the first because: loss is not finite",
        ),
        (
            report(verdict=verdict(0.01, -0.1, 0.1, "no difference told")),
            "40 held-out images tell differences of about 0.100 and more; here it is +0.010.",
        ),
        (
            report(verdict=verdict(0.01, -0.01, 0.02, "no difference told")),
            "Seeds alone move AP by 0.020",
        ),
        (report(trial(0, 0.1), trial(1, 0.5, lr=9.9e-3)), "--param schedule.lr=log:0.0004..0.04."),
        (report(trial(0, 0.1), trial(1, 0.5, lr=1e-4)), "--param schedule.lr=log:2.5e-05..0.0025."),
        (
            report(trial(0, 0.1), trial(1, 0.5, channels=64)),
            "--param detector.neck.channels=32,64,128.",
        ),
        (
            report(trial(0, 0.1), replace(trial(1, 0.5), curve=((1, 0.1), (2, 0.4), (3, 0.5)))),
            "still gained +0.100 AP in the last third of its 3 epochs: try more, --set schedule.epo"
            "chs=6",
        ),
    ],
)
def test_what_to_try_next(of: SweepReport, words: str) -> None:
    assert any(words in step for step in next_steps(of, SPACE))


def test_nothing_is_advised_without_a_reason() -> None:
    calm = report(*(trial(n, 0.3 + n / 100) for n in range(12)),
                  verdict=Verdict.of_default([0.4, 0.42], images=9))  # fmt: skip
    assert next_steps(calm, SPACE) == ()
    flip = Parameter(key="augment.flip", low=0.0, high=0.5)
    kept = [replace(each, values={"augment.flip": 0.0}) for each in calm.trials]
    assert next_steps(replace(calm, trials=tuple(kept)), Space(of_config={"fpn": (flip,)})) == ()
    assert math.isnan(report(trial(0, 0.0, state="failed")).trials[0].best_ap)

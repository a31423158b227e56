"""Means over seeds, and what they allow to say; all figures by hand."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from cachedet.comparison.results import BinFigure, CellKey, CellResult, ClassFigure
from cachedet.comparison.summary import (
    Summary,
    bin_spreads,
    class_differences,
    compare_groups,
    spread_of,
    summarise,
)
from cachedet.comparison.verdicts import (
    describe_agreement,
    describe_best,
    describe_failed,
    describe_freezing,
    describe_partial,
    judge_difference,
)
from cachedet.evaluation.precision import nan_to_null
from cachedet.live.mode_names import Mode


def cell(mode: Mode, seed: int, ap: float, *, heads: str = "fpn", error: str = "") -> CellResult:
    return CellResult(
        key=CellKey(heads=heads, mode=mode, seed=seed),
        error=error,
        ap=ap,
        low=ap - 0.02,
        high=ap + 0.03,
        seconds=100.0 * (seed + 1),
        peak_memory=1000 + seed,
        classes=(
            ClassFigure(name="rare", boxes=5, ap=ap / 2),
            ClassFigure(name="common", boxes=5000, ap=math.nan if seed == 1 else ap),
        ),
        bins=(BinFigure(name="0-9", classes=1, ap=ap / 2),),
    )


def runs(heads: str = "fpn", **aps: list[float]) -> list[CellResult]:
    """One run for each AP of each mode, seeds from 0."""
    return [
        cell(mode, seed, ap, heads=heads)  # type: ignore[arg-type]
        for mode, of_seeds in aps.items()
        for seed, ap in enumerate(of_seeds)
    ]


def only(summary: Summary) -> str:
    """The one sentence about cached against fine-tuned."""
    (comparison,) = summary.compare("cached", "tuned")
    return judge_difference(comparison)


def test_a_spread_is_of_what_is_known() -> None:
    spread = spread_of([0.5, math.nan, 0.2, 0.8])
    assert spread.mean == pytest.approx(0.5)
    assert (spread.least, spread.most, spread.count) == (0.2, 0.8, 3)
    assert spread.width == pytest.approx(0.6)
    nothing = spread_of([math.nan])
    assert nothing.count == 0
    assert math.isnan(nothing.mean)
    assert nan_to_null(asdict(nothing)) == {"mean": None, "least": None, "most": None, "count": 0}


def test_groups_are_by_heads_as_they_came_then_by_mode() -> None:
    cells = [*runs("z", scratch=[0.1], cached=[0.3, 0.5]), *runs("a", tuned=[0.4])]
    summary = summarise(cells[::-1][:1] + cells[:-1][::-1])
    assert [(group.heads, group.mode) for group in summary.groups] == [
        ("a", "tuned"), ("z", "cached"), ("z", "scratch"),
    ]  # fmt: skip
    assert summary.modes == ("cached", "tuned", "scratch")
    group = summary.groups[1]
    assert [cell.key.seed for cell in group.cells] == [0, 1]
    assert group.ap.mean == pytest.approx(0.4)
    assert group.over_seeds("seconds").mean == pytest.approx(150)
    assert group.peak_memory == 1001


def test_failed_runs_count_nowhere_but_are_named() -> None:
    cells = [*runs(cached=[0.3, 0.5], tuned=[0.4]), cell("tuned", 1, 0.9, error="no memory")]
    summary = summarise(cells)
    assert [cell.key.folder for cell in summary.failed] == ["fpn-tuned-1"]
    tuned = summary.find("fpn", "tuned")
    assert tuned.ap.mean == pytest.approx(0.4)
    assert describe_failed(summary.failed).endswith("figure: fpn-tuned-1.")
    assert describe_failed(()) == ""
    assert summary.to_json()["groups"][1]["failed"] == [
        {"heads": "fpn", "mode": "tuned", "seed": 1}
    ]


def test_differences_are_seed_by_seed_of_those_both_have() -> None:
    summary = summarise(runs(cached=[0.50, 0.52, 0.90], tuned=[0.47, 0.50]))
    (comparison,) = summary.compare("cached", "tuned")
    assert comparison.seeds == (0, 1)
    assert comparison.first_ap.mean == pytest.approx(0.51)  # without the run that tuned lacks
    assert comparison.difference.mean == pytest.approx(0.025)
    assert (comparison.difference.least, comparison.difference.most) == pytest.approx((0.02, 0.03))
    assert comparison.spread == pytest.approx(0.03)  # of tuned, the wider
    assert comparison.judgement == "within"


@pytest.mark.parametrize(
    ("cached", "tuned", "judgement"),
    [
        ([0.50, 0.52], [0.46, 0.47], "beyond"),
        ([0.46, 0.47], [0.50, 0.52], "beyond"),
        ([0.50, 0.60], [0.46, 0.47], "within"),  # 0.085 apart, 0.1 between seeds
        ([0.5, 0.5], [0.5, 0.5], "within"),
        ([0.5], [0.1], "one seed"),
        ([0.5], [math.nan], "nothing"),
        ([0.5, math.nan], [0.1, 0.2], "one seed"),
    ],
)
def test_a_difference_is_judged_by_the_spread(
    cached: list[float], tuned: list[float], judgement: str
) -> None:
    (comparison,) = summarise(runs(cached=cached, tuned=tuned)).compare("cached", "tuned")
    assert comparison.judgement == judgement


@pytest.mark.parametrize(("seeds", "share"), [(2, 0.215), (3, 0.049), (4, 0.011), (5, 0.002)])
def test_how_often_equals_are_judged_beyond(seeds: int, share: float) -> None:
    """The rates that verdicts.py puts in words, from normal noise."""
    first, second = np.random.default_rng(3).normal(size=(2, 100_000, seeds))
    gap = np.abs(first.mean(1) - second.mean(1))
    beyond = gap > np.maximum(np.ptp(first, axis=1), np.ptp(second, axis=1))
    assert beyond.mean() == pytest.approx(share, abs=0.004)
    cells = runs(cached=first[0].tolist(), tuned=second[0].tolist())  # the code judges the same
    (comparison,) = summarise(cells).compare("cached", "tuned")
    assert (comparison.judgement == "beyond") == bool(beyond[0])


def test_a_verdict_says_which_by_how_much_and_how_sure() -> None:
    summary = summarise(runs(cached=[0.46, 0.47], tuned=[0.50, 0.52]))
    assert only(summary) == (
        "fpn: cached 0.465 is 0.045 below fine-tuned 0.510 in the mean of 2 seeds, seed by seed "
        "from 0.050 below to 0.040 below. That is more than the 0.020 that seeds alone move AP."
    )
    assert describe_freezing(summary)[-1] == (
        "With 2 seeds a mode, one in five comparisons of equals would look like that."
    )
    within = summarise(runs(cached=[0.50, 0.56], tuned=[0.50, 0.52]))
    assert only(within).endswith(
        "from level to 0.040 above. Seeds alone move AP by 0.060: no difference can be told."
    )
    assert len(describe_freezing(within)) == 1
    five = summarise(runs(cached=[0.6] * 5, tuned=[0.5] * 5))
    assert len(describe_freezing(five)) == 1  # so many seeds need no caution


def test_digits_show_which_of_two_is_larger() -> None:
    summary = summarise(runs(cached=[0.5000, 0.5130], tuned=[0.4934, 0.4932]))
    assert "is 0.0132 above fine-tuned" in only(summary)
    assert "more than the 0.0130 that seeds" in only(summary)


def test_one_seed_has_intervals_and_no_verdict() -> None:
    line = only(summarise(runs(cached=[0.5], tuned=[0.47])))
    assert line == (
        "fpn: cached 0.500 (95 % interval over the images 0.480 to 0.530) is 0.030 above "
        "fine-tuned 0.470 (95 % interval over the images 0.450 to 0.500). One seed: another may "
        "turn it round, so no verdict."
    )
    summary = summarise([*runs("a", cached=[0.5], tuned=[0.4]), *runs("b", cached=[1], tuned=[0])])
    (line,) = describe_freezing(summary)
    assert "no verdict" in line
    assert "better" not in line


def test_partial_is_held_against_fine_tuned_and_cached() -> None:
    summary = summarise(
        runs(partial_C4=[0.55, 0.56], cached=[0.5, 0.5], tuned=[0.6, 0.6], partial_C3=[0.5, 0.5])
    )
    assert summary.modes == ("cached", "partial_C4", "partial_C3", "tuned")
    lines = describe_partial(summary)
    assert len(lines) == 4
    assert lines[0].startswith("fpn: last stages trained (from C4) 0.555 is 0.045 below fine-tuned")
    assert "is 0.055 above cached 0.500" in lines[1]
    assert len(summary.to_json()["partial_against_tuned"]) == 2


def test_several_heads_are_counted() -> None:
    cells = [
        *runs("up", cached=[0.60, 0.61, 0.60], tuned=[0.5, 0.5, 0.51]),
        *runs("down", cached=[0.50, 0.51, 0.50], tuned=[0.6, 0.6, 0.61]),
        *runs("even", cached=[0.50, 0.60, 0.50], tuned=[0.5, 0.5, 0.61]),
    ]
    first, caution = describe_freezing(summarise(cells))
    assert first == (
        "Of 3 heads, cached against fine-tuned is better with up and worse with down; with the "
        "other 1 these seeds cannot tell."
    )
    assert "one in twenty" in caution
    (line,) = describe_freezing(summarise(cells[12:] + runs("b", cached=[1, 0], tuned=[0, 1])))
    assert line == "With none of the 2 heads can these seeds tell cached from fine-tuned."


def test_the_best_and_the_best_of_the_other_kind() -> None:
    cells = [
        *runs("a", cached=[0.50, 0.52], live=[0.53, 0.55], scratch=[0.30, 0.31]),
        *runs("b", tuned=[0.52, 0.53], cached=[0.1, 0.1]),
    ]
    assert describe_best(summarise(cells)) == (
        "The best mean AP is 0.540: live frozen with a (0.530 to 0.550 over 2 seeds).",
        "The best with a backbone that learns is 0.525: fine-tuned with b (0.520 to 0.530 over 2 "
        "seeds). They are 0.015 apart, within the 0.020 that seeds alone move AP.",
    )
    nothing = summarise([cell("cached", 0, math.nan)])
    assert nothing.best_of() is None
    assert "nothing to compare" in describe_best(nothing)[0]
    assert len(describe_best(summarise(runs(cached=[0.5])))) == 1


def test_cached_and_live_agree_or_not() -> None:
    (line,) = describe_agreement(summarise(runs(cached=[0.50, 0.53], live=[0.51, 0.53])))
    assert line == (
        "fpn: they agree. Cached 0.515 and live 0.520 are 0.005 apart; seeds alone move AP by "
        "0.030."
    )
    (line,) = describe_agreement(summarise(runs(cached=[0.50, 0.51], live=[0.53, 0.53])))
    assert line.startswith("fpn: they differ. Cached 0.505 and live 0.530 are 0.025 apart")
    assert "Jitter, which live draws anew every epoch" in line
    (line,) = describe_agreement(summarise(runs(cached=[0.50], live=[0.53])))
    assert "agree" not in line
    assert "One seed does not say" in line
    (line,) = describe_agreement(summarise(runs(cached=[0.50])))
    assert line.startswith("Not looked at")
    assert describe_freezing(summarise(runs(cached=[0.5])))[0].startswith("Whether freezing")


def test_class_differences_are_seed_by_seed() -> None:
    summary = summarise(runs(cached=[0.50, 0.60, 0.9], tuned=[0.40, 0.70], live=[0.0, 0.0]))
    rare, common = class_differences(summary, "fpn")
    assert (rare.name, rare.boxes) == ("rare", 5)
    assert rare.difference.mean == pytest.approx(0.0)
    assert (rare.difference.least, rare.difference.most) == pytest.approx((-0.05, 0.05))
    assert common.difference.count == 1  # seed 1 has no such boxes
    assert common.difference.mean == pytest.approx(0.1)
    assert class_differences(summarise(runs(cached=[0.5])), "fpn") == ()


def test_bins_are_means_over_seeds() -> None:
    group = summarise(runs(cached=[0.4, 0.8])).groups[0]
    (of_bin,) = bin_spreads(group)
    assert (of_bin.name, of_bin.classes) == ("0-9", 1)
    assert of_bin.ap.mean == pytest.approx(0.3)


def test_groups_of_different_heads_compare_too() -> None:
    one, other = summarise([*runs("a", cached=[0.5, 0.5]), *runs("b", tuned=[0.2, 0.4])]).groups
    assert compare_groups(one, other).difference.mean == pytest.approx(0.2)


def test_the_json_is_json() -> None:
    cells = [*runs(cached=[0.5, math.nan], live=[0.5], tuned=[math.nan]), cell("scratch", 0, 0.1)]
    values = json.loads(json.dumps(summarise(cells).to_json(), allow_nan=False))
    assert values["best"] == {"heads": "fpn", "mode": "cached"}
    assert values["cached_against_tuned"][0]["judgement"] == "nothing"
    assert values["cached_against_live"][0]["seeds"] == [0]
    assert values["groups"][0]["ap"] == {"mean": 0.5, "least": 0.5, "most": 0.5, "count": 1}

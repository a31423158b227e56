"""When a comparison is too early to believe, and that it says which reason that has."""

from __future__ import annotations

import math

from cachedet.comparison.cautions import Caution, find_cautions
from cachedet.comparison.results import CellKey, CellResult
from cachedet.comparison.summary import summarise
from cachedet.live.mode_names import Mode


def cells(
    mode: Mode, *aps: float, rise: float = 0.0, wide: float = 0.01, heads: str = "fpn"
) -> list[CellResult]:
    """One for each AP, seeds from 0, with intervals so wide."""
    return [
        CellResult(
            key=CellKey(heads=heads, mode=mode, seed=seed),
            ap=ap,
            low=ap - wide / 2,
            high=ap + wide / 2,
            late_rise=rise,
        )
        for seed, ap in enumerate(aps)
    ]


def cautions(*runs: list[CellResult]) -> tuple[Caution, ...]:
    return find_cautions(summarise([cell for run in runs for cell in run]))


def test_nothing_to_warn_of() -> None:
    assert cautions(cells("cached", 0.5, rise=0.04), cells("tuned", 0.4, rise=-0.01)) == ()
    assert cautions(cells("cached", math.nan, rise=math.nan)) == ()


def test_runs_that_still_learn() -> None:
    (caution,) = cautions(
        cells("cached", 0.50, 0.52, rise=0.045),  # 9 %
        cells("partial_C4", 0.60, rise=0.07),
        cells("tuned", 0.30, 0.40, rise=0.12),
    )
    assert caution.kind == "still rising"
    assert caution.text == (
        "Too early to tell: AP still rose steeply in the last quarter of training, last stages "
        "trained (from C4) with fpn by 0.070 to 0.600; fine-tuned with fpn by 0.120 to 0.350. "
        "Training longer can turn the result round."
    )


def test_runs_that_were_scored_once() -> None:
    (caution,) = cautions(cells("cached", 0.5, rise=math.nan), cells("tuned", 0.4))
    assert caution.kind == "scored once"
    assert caution.text == (
        "Whether AP still rises is not known of cached with fpn: scored at the end alone. Train "
        "for more epochs, or validate more often (eval_every)."
    )


def test_runs_that_learnt_nothing() -> None:
    (caution,) = cautions(cells("cached", 0.002, rise=0.002), cells("tuned", 0.009, rise=0.009))
    assert caution.kind == "nothing learnt"
    assert caution.text == (
        "Too early to tell: no run has learnt to find anything yet, the best mean AP is 0.009. "
        "Train longer."
    )


def test_differences_below_the_interval_over_the_images() -> None:
    (caution,) = cautions(
        cells("cached", 0.50, wide=0.08),
        cells("tuned", 0.47, wide=0.05),
        cells("partial_C4", 0.60),
        cells("cached", 0.50, heads="other"),
        cells("tuned", 0.47, heads="other"),
    )
    assert caution.kind == "few images"
    assert caution.text == (
        "Too few images to tell. fpn: cached and fine-tuned are 0.030 apart, and a 95 % interval "
        "over the images is 0.080 wide. Score on more images, or let `cachedet report` compare "
        "two cells image by image."
    )
    beyond = cautions(cells("cached", 0.50, 0.51, wide=0.1), cells("partial_C4", 0.9, 0.9),
                      cells("tuned", 0.47, 0.48, wide=0.02))  # fmt: skip
    assert [one.kind for one in beyond] == ["few images"]
    within = cautions(cells("cached", 0.50, 0.58, wide=0.1), cells("tuned", 0.47, 0.48))
    assert within == ()  # the verdict says already that seeds alone move AP by more
    unknown = cautions(cells("cached", 0.5, wide=math.nan), cells("tuned", 0.49, wide=math.nan))
    assert unknown == ()

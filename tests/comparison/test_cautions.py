"""When a comparison is too early to believe, and that it says which reason that has."""

from __future__ import annotations

import math

from cachedet.comparison.cautions import Caution, find_cautions
from cachedet.comparison.results import CellKey, CellResult
from cachedet.comparison.summary import Comparison, summarise
from cachedet.evaluation.significance import BootstrapReport, ComparisonReport, Interval
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


def interval(low: float, high: float) -> BootstrapReport:
    found = Interval(value=(low + high) / 2, low=low, high=high, share_above_zero=0.5)
    return BootstrapReport(ap=found, ap50=found, per_class=(), resamples=9, num_images=7)


def apart(low: float, high: float) -> ComparisonReport:
    """Two runs whose difference has this interval."""
    both = interval(0.0, 1.0)
    return ComparisonReport(first=both, second=both, difference=interval(low, high))


def cautions(
    *runs: list[CellResult], on_images: ComparisonReport | None = None, asked: int = 0
) -> tuple[Caution, ...]:
    """`asked`: how many pairs have to be compared image by image."""
    compared = []

    def compare(comparison: Comparison) -> ComparisonReport | None:
        compared.append(comparison)
        return on_images

    found = find_cautions(summarise([c for run in runs for c in run]), on_images=compare)
    assert len(compared) == asked
    return found


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


def test_differences_that_other_images_could_turn_round() -> None:
    runs = (
        cells("cached", 0.50, wide=0.08),
        cells("tuned", 0.47, wide=0.05),
        cells("partial_C4", 0.90),  # so far off that nobody needs to look
        cells("cached", 0.50, heads="other"),
        cells("tuned", 0.47, heads="other"),
    )
    (caution,) = cautions(*runs, on_images=apart(-0.01, 0.07), asked=1)
    assert caution.kind == "few images"
    assert caution.text == (
        "Too few images to tell. fpn: cached and fine-tuned are 0.030 apart, with other images of "
        "the kind from -0.010 to +0.070 (95 % interval). Score on more images."
    )
    assert cautions(*runs, on_images=apart(0.01, 0.05), asked=1) == ()
    assert cautions(*runs, on_images=None, asked=1) == ()


def test_seeds_that_forbid_a_verdict_are_enough() -> None:
    within = (cells("cached", 0.50, 0.58, wide=0.1), cells("tuned", 0.47, 0.48))
    assert cautions(*within) == ()
    beyond = (cells("cached", 0.50, 0.51, wide=0.1), cells("tuned", 0.47, 0.48))
    assert len(cautions(*beyond, on_images=apart(-0.01, 0.07), asked=1)) == 1
    partial = (cells("partial_C4", 0.55, wide=0.2), cells("cached", 0.5))
    (caution,) = cautions(*partial, on_images=apart(-0.01, 0.1), asked=1)
    assert "fpn: last stages trained (from C4) and cached are 0.050 apart" in caution.text
    assert cautions(cells("cached", 0.5, wide=math.nan), cells("tuned", 0.49)) == ()

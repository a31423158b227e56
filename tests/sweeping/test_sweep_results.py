"""The verdict: what images and seeds allow to say of a winner."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cachedet.evaluation.significance import BootstrapReport, ComparisonReport, Interval
from cachedet.sweeping.sweep_results import Judgement, SweepReport, TrialRecord, Verdict


def report(value: float, low: float, high: float) -> ComparisonReport:
    interval = Interval(value=value, low=low, high=high, share_above_zero=0.9)
    of = BootstrapReport(ap=interval, ap50=interval, per_class=(), resamples=9, num_images=40)
    return ComparisonReport(first=of, second=of, difference=of)


@pytest.mark.parametrize(
    ("winner", "default", "interval", "judgement", "words"),
    [
        ([0.5, 0.52], [0.4, 0.41], (0.105, 0.05, 0.15), "better", "The winner is better than"),
        ([0.4, 0.41], [0.5, 0.52], (-0.105, -0.15, -0.05), "worse", "The winner is worse than"),
        ([0.5, 0.52], [0.49, 0.5], (0.015, -0.05, 0.08), "no difference told", "No difference can"),
        ([0.5, 0.7], [0.4, 0.41], (0.195, 0.05, 0.3), "no difference told", "No difference can"),
        ([0.5], [0.4], (0.1, 0.05, 0.15), "one seed", "One seed tells nothing"),
    ],
)
def test_verdicts(
    winner: list[float],
    default: list[float],
    interval: tuple[float, float, float],
    judgement: Judgement,
    words: str,
) -> None:
    """Better only beyond the interval of the images and beyond what seeds move."""
    verdict = Verdict.of(winner, default, report(*interval))
    assert verdict.judgement == judgement
    assert verdict.describe().startswith(words)
    assert "on 40 held-out images" in verdict.describe()
    assert verdict.to_json()["sentence"] == verdict.describe()


def test_what_a_small_holdout_could_tell_is_said() -> None:
    verdict = Verdict.of([0.5, 0.51], [0.49, 0.5], report(0.01, -0.05, 0.09))
    assert "tell differences of about 0.070 AP and more" in verdict.describe()


def test_a_default_that_is_best() -> None:
    verdict = Verdict.of_default([0.4, 0.42], images=9)
    assert verdict.describe().startswith("The default is the best of the search: AP 0.410 (")


def test_json_has_no_nan() -> None:
    trial = TrialRecord(
        number=0, state="running", config="a", values={}, objectives=(), curve=(),
        seconds=math.nan, images=math.nan, error="", run=Path("run"),
    )  # fmt: skip
    report = SweepReport(
        out=Path("out"), objectives=("ap",), space={}, trials=(trial,), best=(), winner=None,
        importances={}, choosing=1, reporting=1, finals=(), verdict=None, seconds=0.0, parallel=1,
        settings={}, notes=(), interrupted_by="SIGINT",
    )  # fmt: skip
    assert "NaN" not in json.dumps(report.to_json())
    assert report.to_json()["trials"][0]["best_ap"] is None

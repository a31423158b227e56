"""The bootstrap: weights against images that really stand several times, and its coverage."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cachedet.evaluation import significance
from cachedet.evaluation.detection_table import tabulate
from cachedet.evaluation.matches import match_detections
from cachedet.evaluation.metrics import score_detections
from cachedet.evaluation.significance import (
    Interval,
    bootstrap,
    compare_runs,
    compare_seeds,
    draw_images,
    weighted_ap,
)
from cachedet.structures import Annotations, CategoryMap, Detections

few = settings(max_examples=20, deadline=None)


def repeated(
    annotations: Annotations, drawn: list[Detections], weights: NDArray[np.int32]
) -> tuple[Annotations, list[Detections]]:
    """A data set in which image n really stands `weights[n]` times, under ids of their own."""
    rows = np.repeat(np.arange(len(annotations)), weights)
    copy = np.concatenate([np.arange(count) for count in weights])
    ids = annotations.image_ids[rows] * 100 + copy  # in the order of the ids they had
    plain = annotations.keep_rows(rows.tolist())
    again = dataclasses.replace(
        plain, image_ids=ids, file_names=tuple(f"{n}.jpg" for n in range(len(ids)))
    )
    return again, [
        dataclasses.replace(drawn[row], image_id=int(image_id))
        for row, image_id in zip(rows.tolist(), ids, strict=True)
    ]


@few
@given(seed=st.integers(0, 2**32 - 1))
def test_weights_of_one_give_the_ap(seed: int, scene: Any) -> None:
    annotations, drawn = scene().draw(seed)
    matches = match_detections(annotations, tabulate(annotations, drawn))
    ours = weighted_ap(matches, np.ones((1, len(annotations)), dtype=np.int32))
    scores = score_detections(annotations, drawn)
    assert ours.ap[0] == pytest.approx(scores.ap, abs=1e-12, nan_ok=True)
    assert ours.ap50[0] == pytest.approx(scores.ap50, abs=1e-12, nan_ok=True)
    per_class = [score.ap for score in scores.per_class]
    np.testing.assert_allclose(ours.per_class[0], per_class, rtol=0, atol=1e-12)


@few
@given(seed=st.integers(0, 2**32 - 1))
def test_weights_equal_repeated_images(seed: int, scene: Any) -> None:
    annotations, drawn = scene(detections=8).draw(seed)
    # Equal scores in an image may fall on both sides of a copy; apart from these all is exact.
    drawn = [
        dataclasses.replace(each, scores=each.scores - torch.arange(len(each)) * 1e-3)
        for each in drawn
    ]
    weights = draw_images(len(annotations), resamples=3, seed=seed)
    ours = weighted_ap(match_detections(annotations, tabulate(annotations, drawn)), weights)
    for index, of_images in enumerate(weights):
        scores = score_detections(*repeated(annotations, drawn, of_images))
        assert ours.ap[index] == pytest.approx(scores.ap, abs=1e-12, nan_ok=True)
        assert ours.ap50[index] == pytest.approx(scores.ap50, abs=1e-12, nan_ok=True)
        per_class = [score.ap for score in scores.per_class]
        np.testing.assert_allclose(ours.per_class[index], per_class, rtol=0, atol=1e-12)


def test_parts_change_nothing(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations, drawn = scene(images=12).draw(3)
    whole = bootstrap(annotations, drawn, resamples=50)
    monkeypatch.setattr(significance, "_VALUES_AT_ONCE", 100)
    assert bootstrap(annotations, drawn, resamples=50).to_json() == whole.to_json()


def test_draws() -> None:
    weights = draw_images(9, resamples=200, seed=4)
    assert weights.shape == (200, 9)
    assert (weights.sum(axis=1) == 9).all()
    np.testing.assert_array_equal(weights, draw_images(9, resamples=200, seed=4))
    assert (weights != draw_images(9, resamples=200, seed=5)).any()
    assert weights.mean(axis=0) == pytest.approx(np.ones(9), abs=0.3)


def test_intervals_are_quantiles_of_the_resamples(scene: Any) -> None:
    annotations, drawn = scene(images=12).draw(8)
    report = bootstrap(annotations, drawn, resamples=200, seed=3)
    matches = match_detections(annotations, tabulate(annotations, drawn))
    values = weighted_ap(matches, draw_images(len(annotations), resamples=200, seed=3)).ap
    assert report.ap.low == pytest.approx(np.quantile(values, 0.025))
    assert report.ap.high == pytest.approx(np.quantile(values, 0.975))
    assert report.ap.low < report.ap.value < report.ap.high
    assert report.ap.value == pytest.approx(score_detections(annotations, drawn).ap)
    values = report.to_json()
    assert values["resamples"] == 200
    assert values["num_images"] == 12
    assert values["per_class"][-1]["value"] is None, "a class without boxes has no interval"


def test_a_run_against_itself_and_a_worse_one(scene: Any) -> None:
    """Paired: the same run differs by exactly nothing, however noisy it is."""
    annotations, drawn = scene(images=12).draw(8)
    same = compare_runs(annotations, drawn, drawn, resamples=50).difference
    assert (same.ap.value, same.ap.low, same.ap.high) == (0.0, 0.0, 0.0)
    worse = [dataclasses.replace(each, boxes=each.boxes + 2.5) for each in drawn]
    report = compare_runs(annotations, drawn, worse, resamples=200)
    difference = report.difference.ap
    assert difference.value == pytest.approx(report.first.ap.value - report.second.ap.value)
    assert difference.low > 0
    assert difference.share_above_zero == 1.0
    unpaired = math.hypot(width(report.first.ap), width(report.second.ap))
    assert width(difference) < unpaired
    assert report.to_json()["difference"]["ap"]["low"] == difference.low


def width(interval: significance.Interval) -> float:
    return interval.high - interval.low


def test_coverage() -> None:
    """Of 60 data sets of 80 images, intervals of 95 % hold the value of 4,000 images."""
    rng = np.random.default_rng(0)
    population = bernoulli_images(rng, 4000)
    expected = bootstrap(*population, resamples=1).ap50.value
    held = 0
    for seed in range(60):
        report = bootstrap(*bernoulli_images(rng, 80), resamples=150, seed=seed)
        held += report.ap50.low <= expected <= report.ap50.high
    assert 51 <= held <= 60  # 95 % of 60 are 57, within three standard deviations and some


def bernoulli_images(rng: np.random.Generator, count: int) -> tuple[Annotations, list[Detections]]:
    """Three boxes an image; an image's difficulty decides how many are drawn, and how surely."""
    corner = np.array([[0.0, 0], [40, 40], [80, 80]])
    boxes = np.tile(np.concatenate([corner, corner + 20], axis=1), (count, 1))
    annotations = Annotations(
        image_ids=np.arange(count, dtype=np.int64),
        file_names=tuple(map(str, range(count))),
        sizes_hw=np.full((count, 2), 100, dtype=np.int64),
        offsets=np.arange(0, 3 * count + 1, 3, dtype=np.int64),
        boxes=boxes,
        labels=np.zeros(3 * count, dtype=np.int64),
        crowd=np.zeros(3 * count, dtype=np.bool_),
        areas=np.full(3 * count, 400.0),
        categories=CategoryMap(ids=(1,), names=("box",)),
    )
    drawn = []
    for row, ease in enumerate(rng.beta(2, 1, size=count)):
        hit = rng.random(3) < ease
        shifted = np.where(hit[:, None], boxes[:3], boxes[:3] + 300)
        drawn.append(
            Detections(
                image_id=row,
                boxes=torch.from_numpy(shifted),
                scores=torch.from_numpy(rng.beta(2 + 2 * hit, 2)),
                labels=torch.zeros(3, dtype=torch.int64),
            )
        )
    return annotations, drawn


def test_nothing_to_find(scene: Any) -> None:
    annotations, drawn = scene(boxes=0).draw(1)
    report = bootstrap(annotations, drawn, resamples=5)
    expected = dict.fromkeys(("value", "low", "high", "share_above_zero"))
    assert report.to_json()["ap"] == expected


@pytest.mark.parametrize(
    ("low", "high", "apart"),
    [(0.01, 0.2, True), (-0.2, -0.01, True), (-0.1, 0.1, False), (0.0, 0.1, False),
     (math.nan, math.nan, False)],
)  # fmt: skip
def test_an_interval_that_tells_runs_apart(low: float, high: float, apart: bool) -> None:
    interval = Interval(value=0.05, low=low, high=high, share_above_zero=0.5)
    assert interval.excludes_zero is apart


def test_several_seeds_against_others(scene: Any) -> None:
    """The mean over runs on the images as they are; runs that differ widen the interval."""
    truth, detections = scene(images=12).draw(8)
    none = [each.keep(torch.zeros(len(each), dtype=torch.bool)) for each in detections]
    alone = compare_runs(truth, detections, none, resamples=200)
    alike = compare_seeds(truth, [detections] * 3, [none] * 3, resamples=200)
    assert alike.difference.ap.value == pytest.approx(alone.difference.ap.value)
    assert alike.first.ap.low == pytest.approx(alone.first.ap.low)
    assert alike.tells_apart
    mixed = compare_seeds(truth, [detections, none], [none, none], resamples=200)
    assert mixed.first.ap.value == pytest.approx(alone.first.ap.value / 2)
    assert mixed.difference.ap.low == 0  # of resamples that drew the empty run alone
    assert not mixed.tells_apart

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachedet.evaluation.curves import draw_curves
from cachedet.evaluation.detection_table import tabulate
from cachedet.evaluation.matches import match_detections
from cachedet.evaluation.metrics import score_detections
from cachedet.structures import Annotations, Detections

few = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@few
@given(seed=st.integers(0, 2**32 - 1))
def test_curves_have_the_ap_of_the_figures(seed: int, scene: Any) -> None:
    annotations, found = scene().draw(seed)
    curves = draw_curves(annotations, found)
    scores = score_detections(annotations, found)
    for curve, score in zip(curves.per_class, scores.per_class, strict=True):
        assert curve.ap == pytest.approx(score.ap50, abs=1e-12, nan_ok=True)
        assert list(curve.precision) == sorted(curve.precision, reverse=True)


@few
@given(seed=st.integers(0, 2**32 - 1))
def test_the_best_cut_is_the_best_of_all_scores(seed: int, scene: Any) -> None:
    """Every score is tried by throwing away what lies below it and counting."""
    annotations, found = scene().draw(seed)
    curves = draw_curves(annotations, found)
    for label, curve in enumerate(curves.per_class):
        assert_best(annotations, found, label, curve.best)
    assert_best(annotations, found, None, curves.best)


def assert_best(
    annotations: Annotations, found: list[Detections], label: int | None, best: Any
) -> None:
    of_class = annotations.labels >= 0 if label is None else annotations.labels == label
    boxes = int((~annotations.crowd & of_class).sum())
    matches = match_detections(annotations, tabulate(annotations, found))
    own = ~matches.ignored[0, 0]
    own &= True if label is None else matches.labels == label
    right, scores = matches.matched[0, 0][own], matches.scores[own]
    if not boxes or not len(scores):
        assert math.isnan(best.f1)
        assert math.isnan(best.score)
        return
    tried = {}
    for cut in np.unique(scores):
        hits, kept = int(right[scores >= cut].sum()), int((scores >= cut).sum())
        tried[float(cut)] = (2 * hits / (kept + boxes), hits / kept, hits / boxes)
    assert best.f1 == pytest.approx(max(f1 for f1, _, _ in tried.values()))
    assert (best.f1, best.precision, best.recall) == pytest.approx(tried[best.score])


def test_calibration_by_hand(annotations_of: Callable[..., Annotations]) -> None:
    annotations = annotations_of([(100, 100)], [[[0, 0, 40, 40, 0, 0], [50, 50, 90, 90, 0, 0]]])
    found = Detections(
        image_id=7,
        boxes=torch.tensor([[0.0, 0, 40, 40], [50, 50, 90, 90], [0, 50, 9, 60], [60, 0, 70, 9]]),
        scores=torch.tensor([0.75, 0.875, 0.625, 1.0]),
        labels=torch.tensor([0, 0, 0, 1]),
    )
    curves = draw_curves(annotations, [found], num_bins=4)
    first, _, third, last = curves.calibration
    assert (first.count, third.count, last.count) == (0, 1, 3)
    assert math.isnan(first.precision)
    assert (third.mean_score, third.precision) == (0.625, 0.0)
    assert (last.mean_score, last.precision) == pytest.approx((0.875, 2 / 3))
    assert curves.calibration_error == pytest.approx((0.625 + 3 * (0.875 - 2 / 3)) / 4)
    told = curves.to_json()
    assert told["calibration"][0]["precision"] is None
    assert told["per_class"][0]["best"]["f1"] == 1.0
    assert told["per_class"][0]["best"]["score"] == 0.75
    assert told["per_class"][1]["precision"] == []
    assert len(told["recall"]) == len(told["per_class"][0]["precision"]) == 101


def test_scores_outside_0_to_1_fall_into_the_outer_bins(
    annotations_of: Callable[..., Annotations],
) -> None:
    annotations = annotations_of([(100, 100)], [[[0, 0, 40, 40, 0, 0]]])
    found = Detections(
        image_id=7,
        boxes=torch.tensor([[0.0, 0, 40, 40], [0.0, 50, 40, 90]]),
        scores=torch.tensor([7.0, -3.0]),
        labels=torch.tensor([0, 0]),
    )
    curves = draw_curves(annotations, [found])
    assert [own.count for own in curves.calibration] == [1, *[0] * 8, 1]
    assert curves.best.score == 7.0


def test_nothing_detected(annotations_of: Callable[..., Annotations]) -> None:
    curves = draw_curves(annotations_of([(100, 100)], [[[0, 0, 40, 40, 0, 0]]]), [])
    assert curves.per_class[0].ap == 0.0
    assert math.isnan(curves.calibration_error)
    assert curves.to_json()["best"] == dict.fromkeys(("score", "precision", "recall", "f1"))


@pytest.mark.parametrize(("iou", "bins"), [(0.0, 10), (1.5, 10), (0.5, 0)])
def test_impossible_settings(scene: Any, iou: float, bins: int) -> None:
    annotations, found = scene().draw(1)
    with pytest.raises(ValueError, match=r"an IoU in \(0, 1\] and a bin or more, got"):
        draw_curves(annotations, found, iou=iou, num_bins=bins)

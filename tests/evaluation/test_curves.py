from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.evaluation.curves import draw_curves
from cachedet.evaluation.detection_table import tabulate
from cachedet.evaluation.matches import match_detections
from cachedet.evaluation.metrics import accumulate, score_detections
from cachedet.structures import Annotations, Detections

few = settings(max_examples=25, deadline=None)


@few
@given(seed=st.integers(0, 2**32 - 1))
def test_curves_have_the_ap_of_the_figures(seed: int, scene: Any) -> None:
    annotations, detections = scene().draw(seed)
    curves = draw_curves(annotations, detections)
    scores = score_detections(annotations, detections)
    for curve, score in zip(curves.per_class, scores.per_class, strict=True):
        assert curve.ap == pytest.approx(score.ap50, abs=1e-12, nan_ok=True)
        assert list(curve.precision) == sorted(curve.precision, reverse=True)
    exact = accumulate(annotations, tabulate(annotations, detections)).precision[0, ..., 0, -1]
    for label, curve in enumerate(curves.per_class):
        assert curve.precision == (tuple(exact[:, label]) if curve.precision else ())


@few
@given(seed=st.integers(0, 2**32 - 1))
def test_the_best_cut_is_the_best_of_all_scores(seed: int, scene: Any) -> None:
    """Every score is tried by throwing away what lies below it and counting."""
    annotations, detections = scene().draw(seed)
    curves = draw_curves(annotations, detections)
    for label, curve in enumerate(curves.per_class):
        assert_best(annotations, detections, label, curve.best)
    assert_best(annotations, detections, None, curves.best)


def assert_best(
    annotations: Annotations, detections: list[Detections], label: int | None, best: Any
) -> None:
    of_class = annotations.labels >= 0 if label is None else annotations.labels == label
    boxes = int((~annotations.crowd & of_class).sum())
    matches = match_detections(annotations, tabulate(annotations, detections))
    judged = matches.judged[0].copy()
    judged &= True if label is None else matches.labels == label
    right, scores = matches.right[0][judged], matches.scores[judged]
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


def test_calibration_by_hand(annotations_of: Any) -> None:
    annotations = annotations_of([(100, 100)], [[[0, 0, 40, 40, 0, 0], [50, 50, 90, 90, 0, 0]]])
    detections = Detections(
        image_id=7,
        boxes=torch.tensor([[0.0, 0, 40, 40], [50, 50, 90, 90], [0, 50, 9, 60], [60, 0, 70, 9]]),
        scores=torch.tensor([0.75, 0.875, 0.78125, 1.0]),
        labels=torch.tensor([0, 0, 0, 1]),
    )
    curves = draw_curves(annotations, [detections])
    assert [each.count for each in curves.calibration] == [0] * 7 + [2, 1, 1]
    assert math.isnan(curves.calibration[0].precision)
    told = [(each.mean_score, each.precision) for each in curves.calibration[7:]]
    assert told == [(0.765625, 0.5), (0.875, 1.0), (1.0, 0.0)]
    assert curves.calibration_error == pytest.approx((2 * 0.265625 + 0.125 + 1) / 4)
    as_json = curves.to_json()
    assert as_json["calibration"][0]["precision"] is None
    assert as_json["per_class"][0]["best"]["f1"] == 0.8
    assert as_json["per_class"][0]["best"]["score"] == 0.75
    assert as_json["per_class"][1]["precision"] == []
    assert len(as_json["recall"]) == len(as_json["per_class"][0]["precision"]) == 101


def test_scores_outside_0_to_1_fall_into_the_outer_bins(annotations_of: Any) -> None:
    annotations = annotations_of([(100, 100)], [[[0, 0, 40, 40, 0, 0]]])
    detections = Detections(
        image_id=7,
        boxes=torch.tensor([[0.0, 0, 40, 40], [0.0, 50, 40, 90]]),
        scores=torch.tensor([7.0, -3.0]),
        labels=torch.tensor([0, 0]),
    )
    curves = draw_curves(annotations, [detections])
    assert [bin_.count for bin_ in curves.calibration] == [1, *[0] * 8, 1]
    assert curves.best.score == 7.0


def test_nothing_detected(annotations_of: Any) -> None:
    curves = draw_curves(annotations_of([(100, 100)], [[[0, 0, 40, 40, 0, 0]]]), [])
    assert curves.per_class[0].ap == 0.0
    assert math.isnan(curves.calibration_error)
    assert curves.to_json()["best"] == dict.fromkeys(("score", "precision", "recall", "f1"))

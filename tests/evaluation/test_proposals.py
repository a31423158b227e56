from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.evaluation.metrics import coco_results, ground_truth_json
from cachedet.evaluation.proposals import ProposalReport, proposal_recall
from cachedet.structures import Detections


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_equals_pycocotools_without_classes(seed: int, scene: Any, pycocotools: Any) -> None:
    annotations, drawn = scene(detections=20).draw(seed)
    drawn = [dataclasses.replace(each, labels=torch.zeros_like(each.labels)) for each in drawn]
    theirs = pycocotools(
        ground_truth_json(annotations),
        coco_results(annotations, drawn),
        limits=(1, 3, 12),
        use_classes=False,
    ).eval["recall"]
    ours = proposal_recall(annotations, drawn, limits=(12, 1, 3))
    assert [recall.limit for recall in ours] == [1, 3, 12]
    for index, recall in enumerate(ours):
        figures = (recall.ar, recall.ar_small, recall.ar_medium, recall.ar_large)
        for area, figure in enumerate(figures):
            expected = theirs[:, 0, area, index]
            if (expected < 0).all():
                assert math.isnan(figure)
            else:
                assert figure == pytest.approx(expected.mean(), abs=1e-12)
        if not math.isnan(recall.ar):
            assert recall.recall50 == pytest.approx(theirs[0, 0, 0, index])
            assert recall.recall75 == pytest.approx(theirs[5, 0, 0, index])


def test_classes_do_not_matter(annotations_of: Any) -> None:
    annotations = annotations_of([(200, 200)], [[[0, 0, 40, 40, 2, 0], [100, 100, 140, 140, 1, 0]]])
    proposals = Detections(
        image_id=7,
        boxes=torch.tensor([[0.0, 0, 40, 40], [50, 0, 90, 40], [100, 100, 140, 140]]),
        scores=torch.tensor([0.9, 0.8, 0.7]),
        labels=torch.tensor([0, 1, 2]),
    )
    two, three = proposal_recall(annotations, [proposals], limits=(2, 3))
    assert (two.ar, three.ar) == (0.5, 1.0)
    assert math.isnan(two.ar_small)
    report = ProposalReport(most_per_image=3, at_limits=(two, three))
    values = report.to_json()
    assert values["most_per_image"] == 3
    assert [recall["limit"] for recall in values["at_limits"]] == [2, 3]
    assert values["at_limits"][0]["ar_small"] is None

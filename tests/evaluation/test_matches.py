"""The matches are pycocotools' own, at every threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cachedet.evaluation.detection_table import tabulate
from cachedet.evaluation.matches import match_detections
from cachedet.evaluation.metrics import coco_results, ground_truth_json
from cachedet.structures import Detections


@pytest.mark.parametrize("seed", range(20))
def test_every_partner_is_pycocotools_own(seed: int, scene: Any, pycocotools: Any) -> None:
    kind = scene(images=3) if seed % 2 else scene(images=2, boxes=30, classes=1, detections=250)
    annotations, drawn = kind.draw(seed)
    table = tabulate(annotations, drawn)
    theirs = pycocotools(ground_truth_json(annotations), coco_results(annotations, table))
    box_of, judged = np.full((10, len(table)), -1), np.zeros((10, len(table)), dtype=np.bool_)
    for found in theirs.evalImgs:
        if found is not None and found["aRng"] == theirs.params.areaRng[0]:
            numbers = np.array(found["dtIds"], dtype=np.int64) - 1
            judged[:, numbers] = ~found["dtIgnore"].astype(np.bool_)
            box_of[:, numbers] = found["dtMatches"] - 1
    matches = match_detections(annotations, table)
    np.testing.assert_array_equal(matches.judged, judged[:, matches.source])
    expected = np.where(judged, box_of, -1)[:, matches.source]
    np.testing.assert_array_equal(matches.partner, expected)
    np.testing.assert_array_equal(matches.right, expected >= 0)


def test_ten_thousand_detections_in_a_image(annotations_of: Any) -> None:
    """The limit of a class and image comes first, so the rest costs nothing."""
    boxes = [[float(n % 40) * 4, float(n // 40) * 4, float(n % 40) * 4 + 9, n // 40 * 4 + 9, 0, 0]
             for n in range(500)]  # fmt: skip
    corners = torch.rand(12_000, 2) * 150
    drawn = Detections(
        image_id=7,
        boxes=torch.cat([corners, corners + 9], dim=1),
        scores=torch.rand(12_000),
        labels=torch.zeros(12_000, dtype=torch.int64),
    )
    annotations = annotations_of([(200, 200)], [boxes])
    matches = match_detections(annotations, tabulate(annotations, [drawn]))
    assert len(matches.scores) == 100
    assert matches.judged.all()
    assert float(matches.scores.min()) >= float(drawn.scores.sort().values[-101])

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.evaluation.confusion import confuse
from cachedet.evaluation.detection_table import tabulate
from cachedet.evaluation.metrics import accumulate
from cachedet.structures import Detections

BOXES = [[[0, 0, 40, 40, 0, 0], [100, 100, 140, 140, 1, 0], [0, 100, 60, 160, 2, 1]]]


def detections(rows: list[tuple[list[float], float, int]]) -> Detections:
    return Detections(
        image_id=7,
        boxes=torch.tensor([box for box, _, _ in rows]).reshape(-1, 4),
        scores=torch.tensor([score for _, score, _ in rows]),
        labels=torch.tensor([label for _, _, label in rows], dtype=torch.int64),
    )


def test_by_hand(annotations_of: Any) -> None:
    """Right, taken for another, of nothing, not found, in a crowd, below the score."""
    annotations = annotations_of([(200, 200)], BOXES)
    rows = [
        ([0.0, 0, 40, 40], 0.9, 0),
        ([0.0, 0, 40, 40], 0.8, 1),  # the box is taken: of nothing
        ([100.0, 100, 140, 140], 0.7, 2),
        ([10.0, 110, 30, 130], 0.6, 2),  # in the crowd
        ([100.0, 100, 140, 140], 0.1, 1),
    ]
    table = tabulate(annotations, [detections(rows)])
    matrix = confuse(annotations, table, min_score=0.5)
    expected = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    np.testing.assert_array_equal(matrix.counts, expected)
    assert matrix.to_json()["cells"] == [
        {"ground_truth": 2, "detected": 2, "count": 1},
        {"ground_truth": 5, "detected": 90, "count": 1},
        {"ground_truth": None, "detected": 5, "count": 1},
    ]
    low = confuse(annotations, table, min_score=0.0)
    assert low.counts[1].tolist() == [0, 1, 0, 0], "the right class comes before a better score"


def test_the_largest_overlap_is_taken(annotations_of: Any) -> None:
    annotations = annotations_of([(200, 200)], [[[0, 0, 40, 40, 0, 0], [0, 0, 40, 60, 1, 0]]])
    table = tabulate(annotations, [detections([([0.0, 0, 40, 55], 0.9, 2)])])
    matrix = confuse(annotations, table, min_score=0.5)
    assert matrix.counts[1, 2] == 1
    assert matrix.counts[0, 3] == 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_box_and_detection_is_counted_once(seed: int, scene: Any) -> None:
    annotations, drawn = scene(crowds=0.0).draw(seed)
    table = tabulate(annotations, drawn)
    counts = confuse(annotations, table, min_score=0.4).counts
    boxes = np.bincount(annotations.labels, minlength=3)
    kept = np.bincount(table.labels[table.scores >= 0.4], minlength=3)
    np.testing.assert_array_equal(counts[:3].sum(axis=1), boxes)
    np.testing.assert_array_equal(counts[:, :3].sum(axis=0), kept)
    assert counts[3, 3] == 0
    full = accumulate(annotations, table.keep(table.scores >= 0.4))
    found_at_half = np.where(boxes > 0, full.recall[0, :, 0, -1], 0) * boxes
    np.testing.assert_allclose(np.diagonal(counts)[:3], found_at_half, atol=1e-9)

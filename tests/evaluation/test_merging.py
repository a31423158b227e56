from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.evaluation.merging import Merging
from cachedet.structures import Detections


def detections(rows: list[tuple[list[float], float, int]], **changes: object) -> Detections:
    """(box, score, label) of each."""
    values = {
        "image_id": 7,
        "boxes": torch.tensor([row[0] for row in rows]).reshape(-1, 4),
        "scores": torch.tensor([row[1] for row in rows]),
        "labels": torch.tensor([row[2] for row in rows], dtype=torch.int64),
    }
    return Detections(**values | changes)


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0.0) * max(height, 0.0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return overlap / (areas - overlap)


def oracle(
    by_view: list[Detections], *, nms_iou: float, most: int
) -> list[tuple[list[float], float, int]]:
    """One after the other, the best first; a stronger one of the class in the way drops it."""
    rows = [
        row
        for view in by_view
        for row in zip(view.boxes.tolist(), view.scores.tolist(), view.labels.tolist(), strict=True)
    ]
    kept: list[tuple[list[float], float, int]] = []
    for row in sorted(rows, key=lambda row: -row[1]):  # stable: of equals the earlier view
        if all(other[2] != row[2] or iou(row[0], other[0]) <= nms_iou for other in kept):
            kept.append(row)
    return kept[:most]


EIGHTHS = st.integers(0, 7)
BOXES = st.tuples(EIGHTHS, EIGHTHS, st.integers(1, 6), st.integers(1, 6)).map(
    lambda b: [float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3])]
)
ROWS = st.lists(
    st.tuples(BOXES, st.integers(1, 8).map(lambda n: n / 8), st.integers(0, 2)), max_size=12
)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    views=st.lists(ROWS, min_size=2, max_size=4),
    nms_iou=st.sampled_from([0.21, 0.55, 0.83]),  # that no IoU of such boxes equals
    most=st.sampled_from([1, 3, 100]),
)
def test_equals_a_plain_loop(
    views: list[list[tuple[list[float], float, int]]], nms_iou: float, most: int
) -> None:
    by_view = [detections(rows) for rows in views]
    merged = Merging(nms_iou=nms_iou, max_detections=most)(by_view)
    rows = list(
        zip(merged.boxes.tolist(), merged.scores.tolist(), merged.labels.tolist(), strict=True)
    )
    assert rows == oracle(by_view, nms_iou=nms_iou, most=most)
    assert merged.image_id == 7


def test_a_single_view_is_left_as_it_is() -> None:
    twice = detections([([0.0, 0, 4, 4], 0.5, 0), ([0.0, 0, 4, 4], 0.5, 0)])
    assert Merging()([twice]) is twice


def test_two_views_that_found_nothing() -> None:
    merged = Merging()([detections([]), detections([])])
    assert len(merged) == 0
    assert merged.boxes.shape == (0, 4)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_masks_stay_with_their_boxes(order: tuple[int, int]) -> None:
    first = detections(
        [([0.0, 0, 8, 8], 0.5, 0), ([20.0, 0, 28, 8], 0.25, 1)],
        masks=torch.stack([torch.full((2, 2), 0.1), torch.full((2, 2), 0.2)]),
    )
    second = detections([([0.0, 0, 8, 7], 0.75, 0)], masks=torch.full((1, 2, 2), 0.3))
    merged = Merging()([(first, second)[index] for index in order])
    assert merged.scores.tolist() == [0.75, 0.25]
    torch.testing.assert_close(merged.masks[:, 0, 0], torch.tensor([0.3, 0.2]))

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cachedet.data.geometry import Geometry
from cachedet.data.pixel_windows import parse_file_views
from cachedet.data.views import make_geometry
from cachedet.evaluation.merging import Merging, ViewDetections
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


def whole(by_view: Sequence[Detections]) -> list[ViewDetections]:
    return [
        ViewDetections(detections=found, partial=torch.zeros(len(found), dtype=torch.bool))
        for found in by_view
    ]


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
    merged = Merging(nms_iou=nms_iou, max_detections=most)(whole(by_view))
    rows = list(
        zip(merged.boxes.tolist(), merged.scores.tolist(), merged.labels.tolist(), strict=True)
    )
    assert rows == oracle(by_view, nms_iou=nms_iou, most=most)
    assert merged.image_id == 7


def test_a_single_view_is_left_as_it_is() -> None:
    twice = detections([([0.0, 0, 4, 4], 0.5, 0), ([0.0, 0, 4, 4], 0.5, 0)])
    assert Merging()(whole([twice])) is twice


def test_two_views_that_found_nothing() -> None:
    merged = Merging()(whole([detections([]), detections([])]))
    assert len(merged) == 0
    assert merged.boxes.shape == (0, 4)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_masks_stay_with_their_boxes(order: tuple[int, int]) -> None:
    first = detections(
        [([0.0, 0, 8, 8], 0.5, 0), ([20.0, 0, 28, 8], 0.25, 1)],
        masks=torch.stack([torch.full((2, 2), 0.1), torch.full((2, 2), 0.2)]),
    )
    second = detections([([0.0, 0, 8, 7], 0.75, 0)], masks=torch.full((1, 2, 2), 0.3))
    merged = Merging()(whole([(first, second)[index] for index in order]))
    assert merged.scores.tolist() == [0.75, 0.25]
    torch.testing.assert_close(merged.masks[:, 0, 0], torch.tensor([0.3, 0.2]))


def test_what_a_border_cuts_is_dropped_and_what_is_near_may_be_a_part() -> None:
    """Scaled by two; right, top and bottom end with the image."""
    geometry = Geometry(
        image_hw=(100, 200), scaled_hw=(200, 400), offset_yx=(0, 100), valid_hw=(200, 300),
        padded_hw=(224, 320), flip=False,
    )  # fmt: skip
    rows = [[2.0, 10, 50, 60], [4.0, 10, 50, 60], [31.0, 1, 300, 200]]
    found = detections([(row, 1.0, 0) for row in rows])
    of_view = ViewDetections.of(found, geometry)
    assert of_view.detections.boxes.tolist() == [[52, 5, 75, 30], [65.5, 0.5, 200, 100]]
    assert of_view.partial.tolist() == [True, False]
    assert len(ViewDetections.whole(found, geometry).detections) == 3


@pytest.mark.parametrize(
    ("part", "score", "label", "stays"),
    [
        ([60.0, 10, 100, 90], 0.5, 0, False),  # a part of the whole one
        ([60.0, 10, 100, 90], 0.9, 0, False),  # more sure, but not twice
        ([60.0, 10, 100, 90], 0.95, 1, True),  # of another class
        ([60.0, 10, 100, 90], 0.99, 0, True),  # against which the whole one is a guess
        ([60.0, 60, 100, 140], 0.5, 0, True),  # mostly outside of it
    ],
)
def test_parts_give_way_to_the_whole(
    part: list[float], score: float, label: int, stays: bool
) -> None:
    base = detections([([0.0, 0, 100, 100], 0.49, 0)])
    tile = detections([(part, score, label)])
    views = [
        ViewDetections(detections=base, partial=torch.tensor([False])),
        ViewDetections(detections=tile, partial=torch.tensor([True])),
    ]
    assert len(Merging()(views)) == 1 + stays
    views[1] = ViewDetections(detections=tile, partial=torch.tensor([False]))
    assert len(Merging()(views)) == 2  # nested, and nothing cuts it


SIDE = 1000
OBJECTS = st.tuples(
    st.integers(0, 900), st.integers(0, 900), st.integers(20, 700), st.floats(0.5, 2)
)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    objects=st.lists(OBJECTS, min_size=1, max_size=12),
    views=st.sampled_from(
        ["base,tile=2", "base,tile=3", "base,tile=2,tile=4", "base,tile=500px", "base,tile=330px"]
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_objects_on_seams_are_found_once(
    objects: list[tuple[int, int, int, float]], views: str, seed: int
) -> None:
    """A detector draws what it sees, edges off by up to 12 pixels, and sees nothing small."""
    rng = np.random.default_rng(seed)
    truth = apart(objects)
    found = []
    for geometry in geometries_of(views):
        seen = geometry.boxes_to_view(truth).double()
        is_seen = geometry.visible_fraction(truth) > 0.3
        is_seen &= ((seen[:, 2:] - seen[:, :2]).amin(dim=1) >= 16).numpy()
        most = (0.1 * (seen[:, 2:] - seen[:, :2]).amin(dim=1)).clamp(max=12)
        noise = torch.from_numpy(rng.uniform(-1, 1, seen.shape)) * most[:, None]
        drawn = (seen + noise)[is_seen].clamp(0, 400)
        scores = torch.from_numpy(rng.uniform(0.55, 1, len(drawn)))
        rows = [(box, score, 0) for box, score in zip(drawn.tolist(), scores.tolist(), strict=True)]
        found.append(ViewDetections.of(detections(rows), geometry))
    merged = Merging()(found).boxes.double()
    expected = truth[(truth[:, 2:] - truth[:, :2]).min(axis=1) >= 50]  # those that base sees
    for box in expected.tolist():
        assert sum(iou(box, other) > 0.5 for other in merged.tolist()) == 1
    for box in merged.tolist():
        assert max(iou(box, other) for other in truth.tolist()) > 0.4


def geometries_of(views: str) -> list[Geometry]:
    named, windows = parse_file_views(views)
    settings: dict[str, Any] = {"image_size": 400, "pad_multiple": 32}
    of_views = [make_geometry(v, image_hw=(SIDE, SIDE), image_id=1, **settings) for v in named]
    return of_views + [g for each in windows for g in each.geometries((SIDE, SIDE), **settings)]


def apart(
    objects: list[tuple[int, int, int, float]],
) -> NDArray[np.float64]:
    """(M, 4) boxes in the image of which none overlaps another."""
    kept: list[list[float]] = []
    for x, y, size, aspect in objects:
        box = [float(x), float(y), min(x + size * aspect, SIDE), float(min(y + size, SIDE))]
        if min(box[2] - box[0], box[3] - box[1]) >= 20 and all(iou(box, k) == 0 for k in kept):
            kept.append(box)
    return np.array(kept).reshape(-1, 4)

"""No caption hides another, and all have one where there is room."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cachedet.drawing.tag_places import Place, place_tags


def crowd(seed: int, count: int, *, side: float, size: tuple[int, int]) -> NDArray[np.float64]:
    draw = np.random.default_rng(seed)
    centres = draw.uniform(0, size, (count, 2))
    halves = draw.uniform(side / 4, side, (count, 2)) / 2
    boxes = np.concatenate([centres - halves, centres + halves], axis=1)
    return boxes.clip(0, [*size, *size])


def overlapping(places: list[Place]) -> int:
    corners = np.array([place.rectangle for place in places])
    meets = (corners[:, None, :2] < corners[None, :, 2:]).all(axis=2)
    return int((meets & meets.T).sum()) - len(places)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 20, 100])
def test_crowded_boxes_of_all_sizes(seed: int, count: int) -> None:
    size = (1200, 900)
    boxes = crowd(seed, count, side=300, size=size)
    sizes = [(float(w), 18.0) for w in np.random.default_rng(seed).integers(40, 130, count)]
    places = [place for place in place_tags([*boxes], sizes, size=size) if place is not None]
    assert len(places) == count
    assert overlapping(places) == 0
    for place, tag in zip(places, sizes, strict=True):
        x1, y1, x2, y2 = place.rectangle
        assert 0 <= x1 < x2 <= 1200
        assert 0 <= y1 < y2 <= 900
        assert (x2 - x1, y2 - y1) == tag


def test_where_there_is_no_room_the_weaker_go_without() -> None:
    """They are never laid over others: a hundred boxes at one place of a small image."""
    boxes = [np.array([10.0, 10, 50, 50])] * 100
    places = place_tags(boxes, [(60.0, 12.0)] * 100, size=(100, 100))
    kept = [place for place in places if place is not None]
    assert 5 <= len(kept) <= 8
    assert places[0] is not None
    assert overlapping(kept) == 0


def test_above_its_box_where_that_is_free_and_joined_to_it_where_it_is_far() -> None:
    box = np.array([100.0, 100, 160, 140])
    places = place_tags([box] * 30, [(50.0, 10.0)] * 30, size=(400, 400))
    assert places[0] == Place(rectangle=(100, 90, 150, 100))
    lines = [place.line for place in places if place is not None and place.line is not None]
    assert lines
    for _, _, x, y in lines:
        assert 100 <= x <= 160
        assert 100 <= y <= 140


def test_a_tag_wider_than_its_image() -> None:
    (place,) = place_tags([np.array([5.0, 5, 9, 9])], [(50.0, 12.0)], size=(20, 20))
    assert place is not None
    assert place.rectangle[:1] == (0,)
    assert place_tags([], [], size=(9, 9)) == []

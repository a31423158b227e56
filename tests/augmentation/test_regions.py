from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.augmentation.regions import Grid, Region, show_boxes
from cachedet.structures import Targets

SIDE = 12
edges = st.integers(-3, SIDE + 3)
inside = st.integers(0, SIDE)


def make_targets(boxes: list[tuple[int, int, int, int]], crowd: bool = False) -> Targets:
    return Targets(
        image_id=1,
        size_hw=(SIDE, SIDE),
        boxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        labels=torch.arange(len(boxes)),
        crowd=torch.full((len(boxes),), crowd),
    )


def make_box(x1: int, y1: int, x2: int, y2: int) -> tuple[int, int, int, int]:
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def pixels_of(box: tuple[int, int, int, int]) -> set[tuple[int, int]]:
    x1, y1, x2, y2 = box
    return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}


def around(pixels: set[tuple[int, int]]) -> list[int]:
    xs, ys = [x for x, _ in pixels], [y for _, y in pixels]
    return [min(xs), min(ys), max(xs) + 1, max(ys) + 1]


BOXES = st.builds(make_box, inside, inside, inside, inside).filter(lambda b: len(pixels_of(b)) > 0)
WINDOWS = st.builds(make_box, edges, edges, edges, edges)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(boxes=st.lists(BOXES, max_size=4), window=WINDOWS, crowd=st.booleans())
def test_shown_boxes_by_counting_pixels(
    boxes: list[tuple[int, int, int, int]], window: tuple[int, int, int, int], crowd: bool
) -> None:
    x1, y1, x2, y2 = window
    if x1 >= SIDE or y1 >= SIDE or x2 <= 0 or y2 <= 0:
        return  # a window that shows nothing of the image is never drawn
    after = show_boxes(make_targets(boxes, crowd), window)
    assert after.size_hw == (min(y2, SIDE) - y1, min(x2, SIDE) - x1)
    shown = [{(x - x1, y - y1) for x, y in pixels_of(box) & pixels_of(window)} for box in boxes]
    seen = [number for number, pixels in enumerate(shown) if pixels]
    assert after.labels.tolist() == seen
    assert after.boxes.tolist() == [around(shown[number]) for number in seen]
    shares = [len(shown[number]) / len(pixels_of(boxes[number])) for number in seen]
    assert after.crowd.tolist() == [crowd or share < 0.25 for share in shares]


def test_exactly_a_quarter_is_still_an_object() -> None:
    targets = make_targets([(0, 0, 8, 4)])
    assert show_boxes(targets, (6, 0, 12, 12)).crowd.tolist() == [False]
    assert show_boxes(targets, (7, 0, 12, 12)).crowd.tolist() == [True]


def test_regions_are_whole_cells_on_every_level(painting: Any) -> None:
    grid = Grid(painting.make_spec(8, 12))
    assert grid.cell == 24
    region = Region(top=1, left=0, height=2, width=3)
    assert grid.slices("S8", region) == (slice(3, 9), slice(0, 9))
    assert grid.slices("S12", region) == (slice(2, 6), slice(0, 6))
    assert grid.window_of(region) == (0, 24, 72, 72)
    assert grid.touched((25, 24)) == (2, 1)


def test_a_level_the_detector_leaves_out_still_decides_the_grid(painting: Any) -> None:
    spec = painting.make_spec(8, 16, 32)
    maps = painting.paint(spec, (64, 96), 2)
    assert Grid(spec).shape_of({"S8": maps["S8"]}) == (2, 3)


def test_maps_of_another_spec_are_refused(painting: Any) -> None:
    grid = Grid(painting.make_spec(8, 16))
    message = "maps of one batch must cover the same pixels, a multiple of 16, got"
    with pytest.raises(ValueError, match=rf"{message} \[\(24, 32\)\] from .*'S8': \(1, 3, 3, 4\)"):
        grid.shape_of({"S8": torch.zeros(1, 3, 3, 4)})
    with pytest.raises(ValueError, match=rf"{message} \[\(16, 32\), \(32, 32\)\]"):
        grid.shape_of({"S8": torch.zeros(1, 3, 4, 4), "S16": torch.zeros(1, 3, 1, 2)})

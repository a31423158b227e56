"""Boxes whose four numbers mean something else are recognised, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cachedet.data.box_columns import BoxColumns
from cachedet.inspection.box_readings import find_reading

Boxes = NDArray[np.float64]
NAMES = [f"{number}.png" for number in range(6)]
KINDS = {"x and y swapped", "centres", "percents"}
WRONG: dict[str, tuple[str, Callable[[Boxes, Boxes], Boxes]]] = {
    "[y, x, height, width]": ("x and y swapped", lambda xywh, sides: xywh[:, [1, 0, 3, 2]]),
    "[y, x, width, height]": ("x and y swapped", lambda xywh, sides: xywh[:, [1, 0, 2, 3]]),
    "[y1, x1, y2, x2]": (
        "x and y swapped",
        lambda xywh, sides: np.hstack([xywh[:, 1::-1], xywh[:, 1::-1] + xywh[:, 3:1:-1]]),
    ),
    "[centre x, centre y, width, height]": (
        "centres",
        lambda xywh, sides: np.hstack([xywh[:, :2] + xywh[:, 2:] / 2, xywh[:, 2:]]),
    ),
    "percents": ("percents", lambda xywh, sides: xywh / sides[:, [0, 1, 0, 1]] * 100),
    "percents as [centre x, centre y, width, height]": (
        "percents",
        lambda xywh, sides: (
            np.hstack([xywh[:, :2] + xywh[:, 2:] / 2, xywh[:, 2:]]) / sides[:, [0, 1, 0, 1]] * 100
        ),
    ),
    "percents as [x1, y1, x2, y2]": (
        "percents",
        lambda xywh, sides: (
            np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]) / sides[:, [0, 1, 0, 1]] * 100
        ),
    ),
}


def random_boxes(seed: int, count: int, size_wh: tuple[int, int], largest: float = 0.6) -> Boxes:
    """(M, 4) xywh inside images of one size."""
    rng = np.random.default_rng(seed)
    sides = rng.uniform(0.04, largest, (count, 2)) * size_wh
    return np.hstack([rng.uniform(0, 1, (count, 2)) * (size_wh - sides), sides])


@pytest.mark.parametrize("order", WRONG)
def test_each_is_recognised_with_its_numbers(data: Any, of_kind: Any, order: str) -> None:
    data.size_wh = (320, 240)
    for number in range(6):
        data.draw(f"{number}.png", number)
    kind, wrong = WRONG[order]
    xywh = random_boxes(0, 120, data.size_wh)
    given = wrong(xywh, np.full((120, 2), data.size_wh)).tolist()
    boxes = [(n % 6, 1 + n % 2, box) for n, box in enumerate(given)]
    report = data.check(data.write("a.json", NAMES, boxes))
    finding = of_kind(report, kind)
    assert finding.rank == "stops"
    assert ".png (annotation id " in finding.first_places[0]
    assert not [one for one in report.findings if "outside" in one.kind]
    assert finding.advice
    if kind == "percents":
        assert order in finding.text
        assert finding.text.startswith("train: all of 120 boxes lie within 0..100, in one corner")
        assert "of images of 320x240 pixels" in finding.text
        return
    assert finding.text.startswith(f"train: {finding.count} of 120 boxes (")
    assert finding.text.count(f"and 0 as {order}: most likely") == 1
    right = [(n % 6, 1, box) for n, box in enumerate(xywh.tolist())]
    good = data.check(data.write("g.json", NAMES, right))
    assert not KINDS & {one.kind for one in good.findings}


def test_few_boxes_are_only_to_be_looked_at(data: Any, of_kind: Any) -> None:
    """Seven of twelve as centres: told, but no reason to stop."""
    xywh = random_boxes(0, 12, data.size_wh)
    given = np.hstack([xywh[:, :2] + xywh[:, 2:] / 2, xywh[:, 2:]]).tolist()
    report = data.check(data.write("a.json", NAMES, [(n % 6, 1, b) for n, b in enumerate(given)]))
    assert of_kind(report, "centres").rank == "look at"


def columns_of(xywh: Boxes) -> BoxColumns:
    count = len(xywh)
    return BoxColumns(
        entries=[], rows=np.zeros(count, dtype=np.int64), labels=np.zeros(count, dtype=np.int64),
        xywh=xywh, areas=xywh[:, 2] * xywh[:, 3], crowd=np.zeros(count, dtype=np.bool_),
        flipped=np.zeros(count, dtype=np.bool_),
    )  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 300),
    size_wh=st.tuples(st.integers(16, 2000), st.integers(16, 2000)),
    largest=st.floats(0.05, 1.0),
    beyond=st.floats(0, 0.08),
)
def test_legal_boxes_are_taken_as_they_are(
    seed: int, count: int, size_wh: tuple[int, int], largest: float, beyond: float
) -> None:
    """Also those that a person drew a little beyond the border."""
    xywh = random_boxes(seed, count, size_wh, largest)
    xywh[::3, 2:] *= 1 + beyond
    sizes = np.full((count, 2), size_wh[::-1], dtype=np.int64)
    assert find_reading(columns_of(xywh), sizes) is None


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(60, 300), order=st.sampled_from([*WRONG]))
def test_wrong_ones_are_found_in_any_set(seed: int, count: int, order: str) -> None:
    kind, wrong = WRONG[order]
    sides = np.full((count, 2), (640, 480))
    xywh = wrong(random_boxes(seed, count, (640, 480)), sides)
    found = find_reading(columns_of(xywh), sides[:, ::-1])
    assert found is not None
    assert found.kind == kind


SIDES = (640, 480)
STRANGE: dict[str, tuple[list[float], list[float]]] = {  # xywh of the first and the last box
    "people cut at the waist": ([100, 190, 80, 300], [300, 230, 120, 340]),
    "a row of feet": ([0, 440, 50, 80], [400, 440, 200, 80]),
    "cars that leave to the right": ([350, 100, 280, 100], [400, 230, 320, 140]),
    "a station's sign in one corner": ([5, 8, 60, 60], [30, 35, 65, 65]),
}


@pytest.mark.parametrize("which", STRANGE)
def test_objects_drawn_beyond_one_border_or_in_one_corner_stop_nobody(which: str) -> None:
    xywh = np.linspace(*STRANGE[which], 30)
    found = find_reading(columns_of(xywh), np.full((30, 2), SIDES[::-1]))
    assert found is not None
    assert not found.is_plain
    assert ": perhaps " in found.text
    assert "most likely" not in found.text


def test_images_annotated_in_another_size_say_nothing_of_their_boxes(data: Any) -> None:
    """Width and height of the images are swapped, not x and y of the boxes."""
    data.size_wh = (240, 320)
    for number in range(6):
        data.draw(f"{number}.png", number)
    boxes = random_boxes(0, 120, data.size_wh).tolist()
    data.size_wh = (320, 240)
    report = data.check(data.write("a.json", NAMES, [(n % 6, 1, b) for n, b in enumerate(boxes)]))
    assert "another size" in report.findings[0].text
    assert not KINDS & {one.kind for one in report.findings}

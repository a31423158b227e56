from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cachedet.data.box_columns import BoxColumns
from cachedet.inspection.box_faults import find_doubled

NAMES = [f"{number}.png" for number in range(6)]
GOOD = [
    (image, 1 + image % 2, (10 + 5 * number, 10, 40, 30))
    for number in range(4)
    for image in range(6)
]


def test_a_good_set_is_fine(data: Any) -> None:
    report = data.check(data.write("a.json", NAMES, GOOD))
    assert not report.stops
    assert {finding.rank for finding in report.findings} == {"fine"}
    assert report.counts["train"]["boxes"] == 24


@pytest.mark.parametrize(
    ("kind", "box", "text"),
    [
        ("flipped", (50, 40, -20, -10), "of negative width or height turned round"),
        ("degenerate", (50, 40, 0, 10), "without area, or of NaN or Inf, dropped"),
        ("degenerate", (50, 40, math.nan, 10), "without area, or of NaN or Inf, dropped"),
        ("outside", (200, 40, 20, 10), "outside the image dropped"),
        ("partly outside", (100, 40, 60, 10), "partly outside the image, cut at its border"),
        ("under 1 px", (50, 40, 0.5, 10), "are under 1 pixel wide or high"),
        ("in fractions", (0.25, 0.5, 0.25, 0.25), "lie within 0..1, as fractions of their images"),
        ("whole image", (0, 0, 128, 96), "are as large as their images"),
        ("doubled", (10.2, 10, 40, 30), "cover another one of their class (IoU above 0.95)"),
    ],
)
def test_each_fault_is_counted_and_named(
    data: Any, of_kind: Any, kind: str, box: tuple[float, ...], text: str
) -> None:
    """Of seven such boxes the first five places stand on the screen, all in the JSON."""
    boxes = [(image, 1 + image % 2, (10 + image, 10, 40, 30)) for image in range(6)] * 10
    boxes = [(i, c, (x + 3 * (n // 6), y, w, h)) for n, (i, c, (x, y, w, h)) in enumerate(boxes)]
    faulty = [(0, 1, box), *[(image, 2, box) for image in range(6)]]
    if kind == "doubled":
        faulty = [(i, c, (x + 0.2, y, w, h)) for i, c, (x, y, w, h) in boxes[:7]]
    report = data.check(data.write("a.json", NAMES, [*boxes, *faulty]))
    finding = of_kind(report, kind)
    assert (finding.rank, finding.count) == ("look at", 7)
    assert finding.text.startswith("train: 7 of 67 boxes ")
    assert text in finding.text
    assert finding.first_places[0] == "0.png (annotation id 61)"
    assert len(finding.first_places) == 5
    assert len(finding.to_json()["places"]) == 7
    assert not report.stops
    others = {one.kind for one in report.findings if one.rank != "fine"} - {kind}
    assert others <= {"whole image", "doubled"}, others  # equal faulty boxes lie on each other


def test_images_without_boxes_are_counted(data: Any, of_kind: Any) -> None:
    finding = of_kind(data.check(data.write("a.json", NAMES, GOOD[:4])), "background")
    assert (finding.rank, finding.text) == ("fine", "train: 2 of 6 images are without boxes")


def test_many_boxes_outside_stop(data: Any, of_kind: Any) -> None:
    """A fifth of them: they were drawn on other images."""
    report = data.check(data.write("a.json", NAMES, [*GOOD[:8], (0, 1, (200, 1, 9, 9))] * 3))
    assert of_kind(report, "outside").rank == "look at"
    outside = [(image, 1, (200 + image, 1, 9, 9)) for image in range(4)]
    report = data.check(data.write("a.json", NAMES, [*GOOD[:8], *outside]))
    assert of_kind(report, "outside").rank == "stops"
    assert report.stops


def test_doubled_boxes_are_those_of_pairs() -> None:
    """Against all pairs of random boxes, many of them nearly equal."""
    rng = np.random.default_rng(3)
    base = np.column_stack([rng.uniform(0, 50, (60, 2)), rng.uniform(5, 60, (60, 2))])
    xywh = (base[rng.integers(0, 60, 400)] + rng.normal(0, 0.4, (400, 4))).clip(0.5)
    rows, labels = rng.integers(0, 3, 400), rng.integers(0, 2, 400)
    columns = BoxColumns(
        entries=[],
        rows=rows,
        labels=labels,
        xywh=xywh,
        areas=xywh[:, 2] * xywh[:, 3],
        crowd=np.zeros(400, dtype=np.bool_),
        flipped=np.zeros(400, dtype=np.bool_),
    )
    low = np.maximum(columns.xyxy[:, None, :2], columns.xyxy[None, :, :2])
    high = np.minimum(columns.xyxy[:, None, 2:], columns.xyxy[None, :, 2:])
    inner = (high - low).clip(0).prod(axis=2)
    ious = inner / (columns.areas[:, None] + columns.areas[None] - inner)
    same = (rows[:, None] == rows) & (labels[:, None] == labels) & (ious > 0.95)
    expected = np.tril(same, -1).any(axis=1)
    assert 20 < expected.sum() < 400
    assert find_doubled(columns).tolist() == expected.tolist()

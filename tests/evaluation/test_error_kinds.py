"""Planted errors of each kind, and TIDE in plain loops on random scenes."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.evaluation.detection_table import DetectionTable, tabulate
from cachedet.evaluation.error_kinds import ERROR_KINDS, analyse_errors, sort_errors
from cachedet.evaluation.metrics import score_detections
from cachedet.structures import Annotations, Detections

Row = tuple[list[float], float, int]
BOXES = [[[0, 0, 40, 40, 0, 0], [100, 100, 140, 140, 1, 0]]]
PERFECT: list[Row] = [([0, 0, 40, 40], 0.9, 0), ([100, 100, 140, 140], 0.9, 1)]


def detections(rows: list[Row]) -> Detections:
    return Detections(
        image_id=7,
        boxes=torch.tensor([box for box, _, _ in rows]).reshape(-1, 4).float(),
        scores=torch.tensor([score for _, score, _ in rows]),
        labels=torch.tensor([label for _, _, label in rows], dtype=torch.int64),
    )


@pytest.mark.parametrize(
    ("kind", "rows", "ap50", "cost"),
    [
        ("localisation", [([0, 0, 40, 15], 0.9, 0), PERFECT[1]], 0.5, 0.5),
        ("classification", [([0, 0, 40, 40], 0.9, 1), PERFECT[1]], 0.25, 0.75),
        ("duplicate", [([1, 0, 40, 40], 0.95, 0), *PERFECT], 1.0, 0.0),
        ("background", [([50, 50, 90, 90], 0.95, 0), *PERFECT], 0.75, 0.25),
        ("both", [([0, 0, 40, 15], 0.95, 1), *PERFECT], 0.75, 0.25),
        ("missed", [PERFECT[0]], 0.5, 0.5),
    ],
)
def test_planted(annotations_of: Any, kind: str, rows: list[Row], ap50: float, cost: float) -> None:
    report = analyse_errors(annotations_of([(200, 200)], BOXES), [detections(rows)])
    by_kind = {each.kind: each for each in report.kinds}
    assert report.ap50 == pytest.approx(ap50)
    planted = by_kind.pop(kind)
    assert (planted.count, planted.cost) == (1, pytest.approx(cost))
    assert sum(each.count for each in by_kind.values()) == 0


def test_a_repair_that_would_be_a_duplicate_removes(annotations_of: Any) -> None:
    """Two misplaced ones: the better takes the box, the other goes; a taken box helps nobody."""
    annotations = annotations_of([(200, 200)], [[[0, 0, 40, 40, 0, 0]]])
    two = [([0.0, 0, 40, 15], 0.9, 0), ([0.0, 0, 15, 40], 0.8, 0)]
    report = analyse_errors(annotations, [detections(two)])
    assert report.kinds[0].count == 2
    assert report.kinds[0].cost == pytest.approx(1.0)
    assert report.kinds[-1].count == 0, "a box that a repair finds is not missed"
    again = [([0.0, 0, 40, 15], 0.95, 0), ([0.0, 0, 40, 40], 0.5, 0)]
    report = analyse_errors(annotations, [detections(again)])
    assert report.ap50 == pytest.approx(0.5)
    assert report.kinds[0].cost == pytest.approx(0.5)
    assert report.false_positives.cost == pytest.approx(0.5)
    assert report.false_negatives.cost == 0.0


def test_what_a_crowd_holds_is_no_error(annotations_of: Any) -> None:
    annotations = annotations_of(
        [(200, 200)], [[[0, 0, 100, 100, 0, 1], [120, 120, 160, 160, 0, 0]]]
    )
    rows = [([10.0, 10, 30, 30], 0.9, 0), ([120.0, 120, 160, 160], 0.8, 0)]
    report = analyse_errors(annotations, [detections(rows)])
    assert report.ap50 == pytest.approx(1.0)
    assert sum(each.count for each in report.kinds) == 0


def test_nothing_found_and_nothing_there(annotations_of: Any) -> None:
    report = analyse_errors(annotations_of([(200, 200)], BOXES), [])
    assert report.ap50 == 0.0
    assert [each.count for each in report.kinds] == [0, 0, 0, 0, 0, 2]
    assert report.kinds[-1].cost == pytest.approx(1.0)
    empty = analyse_errors(annotations_of([(200, 200)]), [detections(PERFECT)])
    assert math.isnan(empty.ap50)
    assert empty.to_json()["ap50"] is None
    assert empty.to_json()["kinds"][3]["count"] == 2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_equals_plain_loops(seed: int, scene: Any) -> None:
    annotations, drawn = scene().draw(seed)
    table = tabulate(annotations, drawn)
    report = analyse_errors(annotations, table)
    expected = plain_tide(annotations, table)
    assert report.ap50 == pytest.approx(expected.pop("ap50"), abs=1e-12, nan_ok=True)
    assert report.ap50 == pytest.approx(score_detections(annotations, drawn).ap50, nan_ok=True)
    ours = {each.kind: (each.count, each.cost) for each in report.kinds}
    assert ours.keys() == expected.keys()
    for kind, (count, cost) in expected.items():
        assert ours[kind][0] == count, kind
        assert ours[kind][1] == pytest.approx(cost, abs=1e-12, nan_ok=True), kind
    per_class = {
        kind: sum(counts[kind] for counts in report.per_class) for kind in (*ERROR_KINDS, "missed")
    }
    assert per_class == {kind: count for kind, (count, _) in expected.items()}


def plain_tide(annotations: Annotations, table: DetectionTable) -> dict[str, Any]:
    """Section 2.2 of the paper, one detection after the other; matches as COCO makes them."""
    matches = sort_errors(annotations, table).matches
    partner, judged = np.full(len(table), -1), np.zeros(len(table), dtype=np.bool_)
    partner[matches.source], judged[matches.source] = matches.partner[0], matches.judged[0]
    used = {int(box) for box in partner if box >= 0}
    kinds: dict[int, str] = {}
    target: dict[int, int] = {}
    for number in range(len(table)):
        if partner[number] >= 0 or not judged[number]:
            kinds[number] = "right" if judged[number] else "ignored"
            continue
        span = annotations.boxes_of(int(table.rows[number]))
        boxes = [b for b in range(span.start, span.stop) if not annotations.crowd[b]]
        same = [b for b in boxes if annotations.labels[b] == table.labels[number]]
        other = [b for b in boxes if annotations.labels[b] != table.labels[number]]
        near_same, near_other = (
            best_of(table, annotations, number, boxes_of) for boxes_of in (same, other)
        )
        if 0.1 <= near_same[0] < 0.5:
            kinds[number], target[number] = "localisation", near_same[1]
        elif near_other[0] >= 0.5:
            kinds[number], target[number] = "classification", near_other[1]
        elif near_same[0] >= 0.5:
            kinds[number] = "duplicate"
        else:
            kinds[number] = "both" if near_other[0] >= 0.1 else "background"
    hopeful = {box for box in target.values() if box not in used}
    real = [b for b in range(len(annotations.labels)) if not annotations.crowd[b]]
    missed = [b for b in real if b not in used and b not in hopeful]
    base = plain_ap50(annotations, table, kinds, {}, real)
    result: dict[str, Any] = {"ap50": base}
    for kind in ERROR_KINDS:
        fixes: dict[int, int] = {}
        numbers = [n for n in kinds if kinds[n] == kind]
        taken = set(used)
        order = {int(i): p for p, i in enumerate(np.argsort(annotations.image_ids).tolist())}
        for n in sorted(numbers, key=lambda n: (-table.scores[n], order[int(table.rows[n])], n)):
            fixes[n] = -1
            if n in target and target[n] not in taken:
                fixes[n] = target[n]
                taken.add(target[n])
        result[kind] = (len(numbers), plain_ap50(annotations, table, kinds, fixes, real) - base)
    left = [b for b in real if b not in missed]
    fixed = plain_ap50(annotations, table, kinds, {}, left)
    result["missed"] = (len(missed), (1.0 if math.isnan(fixed) else fixed) - base)
    return result


def best_of(
    table: DetectionTable, annotations: Annotations, number: int, boxes: list[int]
) -> tuple[float, int]:
    best = (0.0, -1)
    x1, y1, w, h = table.xywh[number].tolist()
    for box in boxes:
        a1, b1, a2, b2 = annotations.boxes[box].tolist()
        width, height = min(x1 + w, a2) - max(x1, a1), min(y1 + h, b2) - max(y1, b1)
        if width > 0 and height > 0:
            overlap = width * height / (w * h + (a2 - a1) * (b2 - b1) - width * height)
            best = max(best, (overlap, box), key=lambda pair: pair[0])
    return best


def plain_ap50(
    annotations: Annotations,
    table: DetectionTable,
    kinds: dict[int, str],
    fixes: dict[int, int],
    boxes: list[int],
) -> float:
    counts: dict[int, int] = defaultdict(int)
    for box in boxes:
        counts[int(annotations.labels[box])] += 1
    order = {int(i): p for p, i in enumerate(np.argsort(annotations.image_ids).tolist())}
    values = []
    for label, count in counts.items():
        points = []
        for n, kind in kinds.items():
            if kind == "ignored" or fixes.get(n) == -1:
                continue
            fixed = int(annotations.labels[fixes[n]]) if n in fixes else int(table.labels[n])
            if fixed == label:
                right = kind == "right" or n in fixes
                points.append((-table.scores[n], order[int(table.rows[n])], n, right))
        hits, curve = 0, []
        for at, (_, _, _, right) in enumerate(sorted(points)):
            hits += right
            curve.append((hits / count, hits / (at + 1)))
        values.append(
            np.mean(
                [
                    max((p for r, p in curve if r >= wanted), default=0.0)
                    for wanted in np.linspace(0, 1, 101)
                ]
            )
        )
    return float(np.mean(values)) if values else math.nan

"""LVIS against its algorithm in plain loops, and against recorded figures of the official tool."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.data.coco import annotations_of, load_annotations
from cachedet.errors import DatasetError
from cachedet.evaluation.detection_table import DetectionTable, table_of_results, tabulate
from cachedet.evaluation.lvis import Federated, read_federated, score_lvis
from cachedet.evaluation.metrics import ground_truth_json
from cachedet.structures import Annotations, Detections

FIGURES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ap_rare", "ap_common",
    "ap_frequent", "ar300", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
RANGES = ((0.0, 1e10), (0.0, 1024.0), (1024.0, 9216.0), (9216.0, 1e10))


def federate(annotations: Annotations, seed: int) -> Federated:
    """Negative: some classes an image does not hold; not exhaustive: some, held or not."""
    rng = np.random.default_rng(seed)
    classes = len(annotations.categories)
    every = np.arange(len(annotations) * classes)
    rows = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    held = np.unique(rows * classes + annotations.labels)
    absent = np.setdiff1d(every, held)
    return Federated(
        negative=absent[rng.random(len(absent)) < 0.4],
        not_exhaustive=every[rng.random(len(every)) < 0.25],
        frequencies=tuple(rng.choice(list("rcf"), size=classes).tolist()),
    )


def plain_lvis(
    annotations: Annotations, federated: Federated, table: DetectionTable
) -> dict[str, float]:
    """The protocol as lvis-api's documentation and code have it, one thing after the other."""
    classes = len(annotations.categories)
    kept: list[int] = []
    for row in range(len(annotations)):
        mine = [n for n in range(len(table)) if table.rows[n] == row]
        best = sorted(mine, key=lambda n: -table.scores[n])[:300]
        kept += [n for n in best if table.xywh[n][2] * table.xywh[n][3] > 0]
    precision = -np.ones((10, 101, classes, 4))
    recall = -np.ones((10, classes, 4))
    order = np.argsort(annotations.image_ids).tolist()
    for label in range(classes):
        for area, (low, high) in enumerate(RANGES):
            scores: list[float] = []
            fates: list[list[str]] = []
            boxes_that_count = 0
            for row in order:
                span = annotations.boxes_of(row)
                boxes = [
                    b
                    for b in range(span.start, span.stop)
                    if annotations.labels[b] == label and annotations.areas[b] > 0
                ]
                code = row * classes + label
                if not boxes and code not in federated.negative:
                    continue
                mine = [n for n in kept if table.rows[n] == row and table.labels[n] == label]
                mine.sort(key=lambda n: -table.scores[n])
                boxes.sort(key=lambda b: not low <= annotations.areas[b] <= high)
                counts = [bool(low <= annotations.areas[b] <= high) for b in boxes]
                boxes_that_count += sum(counts)
                spared = code in federated.not_exhaustive
                scores += [float(table.scores[n]) for n in mine]
                fates += fates_of(annotations, table, mine, boxes, counts, (low, high), spared)
            if boxes_that_count == 0:
                continue
            ranked = sorted(range(len(scores)), key=lambda n: -scores[n])
            for threshold in range(10):
                curve, last = interpolated([fates[n][threshold] for n in ranked], boxes_that_count)
                precision[threshold, :, label, area] = curve
                recall[threshold, label, area] = last
    groups = [[k for k in range(classes) if federated.frequencies[k] == letter] for letter in "rcf"]
    values = [
        precision[..., 0], precision[0, ..., 0], precision[5, ..., 0],
        *(precision[..., area] for area in (1, 2, 3)),
        *(precision[:, :, group, 0] for group in groups),
        *(recall[..., area] for area in range(4)),
    ]  # fmt: skip
    means = [float(v[v > -1].mean()) if (v > -1).any() else math.nan for v in values]
    return dict(zip(FIGURES, means, strict=True))


def fates_of(
    annotations: Annotations,
    table: DetectionTable,
    mine: list[int],
    boxes: list[int],
    counts: list[bool],
    bounds: tuple[float, float],
    spared: bool,
) -> list[list[str]]:
    result: list[list[str]] = [[] for _ in mine]
    for threshold in np.linspace(0.5, 0.95, 10):
        free = [True] * len(boxes)
        for index, number in enumerate(mine):
            best, most = -1, min(threshold, 1 - 1e-10)
            for at, box in enumerate(boxes):
                if not free[at]:
                    continue
                if best >= 0 and counts[best] and not counts[at]:
                    break
                overlap = iou(table.xywh[number], annotations.boxes[box])
                if overlap >= most:
                    best, most = at, overlap
            area = table.xywh[number][2] * table.xywh[number][3]
            if best >= 0:
                free[best] = False
                result[index].append("right" if counts[best] else "ignored")
            elif spared or not bounds[0] <= area <= bounds[1]:
                result[index].append("ignored")
            else:
                result[index].append("wrong")
    return result


def interpolated(fates: list[str], boxes: int) -> tuple[list[float], float]:
    points, right, wrong = [], 0, 0
    for fate in fates:
        right += fate == "right"
        wrong += fate == "wrong"
        points.append((right / boxes, right / (right + wrong) if right + wrong else 0.0))
    curve = [
        max((precision for recall, precision in points if recall >= wanted), default=0.0)
        for wanted in np.linspace(0, 1, 101)
    ]
    return curve, points[-1][0] if points else 0.0


def iou(xywh: Any, xyxy: Any) -> float:
    x1, y1, w, h = xywh
    width = min(x1 + w, xyxy[2]) - max(x1, xyxy[0])
    height = min(y1 + h, xyxy[3]) - max(y1, xyxy[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = w * h + (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1]) - width * height
    return float(width * height / union)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_equals_plain_loops(seed: int, scene: Any) -> None:
    annotations, drawn = scene(classes=4, crowds=0.0).draw(seed)
    federated = federate(annotations, seed)
    ours = score_lvis(annotations, federated, drawn).to_json()
    theirs = plain_lvis(annotations, federated, tabulate(annotations, drawn))
    for name in FIGURES:
        if math.isnan(theirs[name]):
            assert ours[name] is None
        else:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-12), name


def test_more_than_300_detections(scene: Any) -> None:
    """The limit is of an image, over all classes, and there is none of 100 a class."""
    annotations, drawn = scene(images=2, boxes=30, classes=2, crowds=0.0, detections=900).draw(9)
    assert max(len(of_image) for of_image in drawn) > 400
    federated = federate(annotations, 9)
    ours = score_lvis(annotations, federated, drawn)
    theirs = plain_lvis(annotations, federated, tabulate(annotations, drawn))
    assert ours.ap == pytest.approx(theirs["ap"], abs=1e-12)
    assert ours.num_judged <= 300 * len(annotations) < ours.num_detections


def lvis_file(annotations: Annotations, federated: Federated) -> dict[str, Any]:
    content = ground_truth_json(annotations)
    classes, ids = len(annotations.categories), annotations.categories.ids
    for row, image in enumerate(content["images"]):
        codes = range(row * classes, (row + 1) * classes)
        image["neg_category_ids"] = [ids[c % classes] for c in codes if c in federated.negative]
        image["not_exhaustive_category_ids"] = [
            ids[c % classes] for c in codes if c in federated.not_exhaustive
        ]
    for category, letter in zip(content["categories"], federated.frequencies, strict=True):
        category["frequency"] = letter
    return content


def test_the_file_round_trips(scene: Any, tmp_path: Path) -> None:
    annotations, _ = scene(classes=4, crowds=0.0).draw(3)
    federated = federate(annotations, 3)
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(lvis_file(annotations, federated)))
    content = load_annotations(path)
    again, _ = annotations_of(content, where=path, keep_all=True)
    read = read_federated(content, again, where=path)
    np.testing.assert_array_equal(read.negative, federated.negative)
    np.testing.assert_array_equal(read.not_exhaustive, federated.not_exhaustive)
    assert read.frequencies == federated.frequencies


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c["categories"][1].pop("frequency"), "category id 3 needs a `frequency` of r"),
        (lambda c: c["images"][2].pop("neg_category_ids"), r"images\[2\] .* `neg_category_ids`"),
        (
            lambda c: c["images"][0].update(not_exhaustive_category_ids=[77]),
            r"images\[0\] .* has 77 in `not_exhaustive_category_ids`, which is not a category",
        ),
    ],
)
def test_files_that_are_not_lvis(scene: Any, spoil: Callable[[Any], Any], message: str) -> None:
    annotations, _ = scene().draw(3)
    content = lvis_file(annotations, federate(annotations, 3))
    spoil(content)
    with pytest.raises(DatasetError, match=message):
        read_federated(content, annotations, where=Path("lvis.json"))


def test_by_hand(annotations_of: Any) -> None:
    """One class a row: an absent class in the negative list costs, one that is unsaid does not."""
    annotations = annotations_of([(100, 100)], [[[0, 0, 40, 40, 0, 0]]])
    rows = [([0.0, 0, 40, 40], 0.5, 0), ([50.0, 50, 90, 90], 0.9, 0), ([50.0, 50, 90, 90], 0.9, 1)]
    drawn = Detections(
        image_id=7,
        boxes=torch.tensor([box for box, _, _ in rows]),
        scores=torch.tensor([score for _, score, _ in rows]),
        labels=torch.tensor([label for _, _, label in rows]),
    )
    nobody = np.zeros(0, dtype=np.int64)
    strict = Federated(negative=nobody, not_exhaustive=nobody, frequencies=("r", "c", "f"))
    scores = score_lvis(annotations, strict, [drawn])
    assert scores.ap == scores.ap_rare == pytest.approx(0.5)
    assert scores.num_judged == 2
    assert math.isnan(scores.ap_common)
    assert scores.to_json()["ap_common"] is None
    spared = Federated(negative=nobody, not_exhaustive=np.array([0]), frequencies=("r", "c", "f"))
    assert score_lvis(annotations, spared, [drawn]).ap == pytest.approx(1.0)


def test_the_official_figures() -> None:
    """Recorded from lvis-api 0.5.3 on the file beside; -1 is LVIS's "no such boxes"."""
    path = Path(__file__).parent / "fixtures" / "lvis_official.json"
    recorded = json.loads(path.read_text())
    annotations, _ = annotations_of(recorded["annotations"], where=path, keep_all=True)
    federated = read_federated(recorded["annotations"], annotations, where=path)
    table = table_of_results(annotations, recorded["results"])
    ours = score_lvis(annotations, federated, table).to_json()
    figures = [-1.0 if ours[name] is None else ours[name] for name in FIGURES]
    np.testing.assert_allclose(figures, recorded["figures"], rtol=0, atol=1e-12)
    assert len(set(figures)) > 10

"""COCO's figures are pycocotools' own, to the last bit."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from cachedet.data.masks import NO_MASK, encode_bitmap, encode_segmentation
from cachedet.errors import InputError, StoreError
from cachedet.evaluation.detection_table import DetectionTable, tabulate
from cachedet.evaluation.metrics import (
    Kind,
    accumulate,
    coco_results,
    ground_truth_json,
    score_detections,
    score_table,
)
from cachedet.structures import Annotations, Detections, MaskCodes

BOXES = [
    [[10, 10, 60, 60, 0, 0], [70, 70, 90, 95, 1, 0], [0, 0, 120, 40, 0, 1]],
    [],
    [[5, 5, 150, 150, 0, 0], [20.5, 30.25, 40.75, 60, 2, 0]],
]


@pytest.fixture(params=[(2, 5, 90), (0, 17, 1203)])
def annotations(request: pytest.FixtureRequest, annotations_of: Any) -> Annotations:
    return annotations_of([(200, 200)] * 3, BOXES, ids=request.param)


def detections(image_id: int, rows: list[tuple[list[float], float, int]]) -> Detections:
    return Detections(
        image_id=image_id,
        boxes=torch.tensor([box for box, _, _ in rows]).reshape(-1, 4),
        scores=torch.tensor([score for _, score, _ in rows]),
        labels=torch.tensor([label for _, _, label in rows], dtype=torch.int64),
    )


@pytest.fixture
def drawn() -> list[Detections]:
    """Hits, a miss, a duplicate, ties in score, something inside the crowd, a negative image."""
    return [
        detections(7, [
            ([11.0, 10, 60, 61], 0.9, 0), ([12.0, 10, 60, 61], 0.9, 0), ([2.0, 2, 30, 30], 0.8, 0),
            ([71.0, 70, 92, 95], 0.5, 1),
        ]),
        detections(17, [([1.0, 1, 50, 50], 0.5, 0)]),
        detections(27, [([5.0, 8, 140, 150], 0.5, 0), ([20.0, 30, 44, 60], 0.3, 2)]),
    ]  # fmt: skip


FUZZ_SEEDS = 200


def assert_equals_pycocotools(
    annotations: Annotations, table: DetectionTable, pycocotools: Any, of: Kind = "bbox"
) -> None:
    """On the files a person would give it; boxes without a mask are no truth about masks."""
    files = ground_truth_json(annotations), coco_results(annotations, table)
    truth, rows = json.loads(json.dumps(files))
    if of == "segm":
        rows = [{key: row[key] for key in row if key != "bbox"} for row in rows]
        truth["annotations"] = [each for each in truth["annotations"] if "segmentation" in each]
    theirs = pycocotools(truth, rows, of=of)
    full = accumulate(annotations, table, of=of)
    np.testing.assert_array_equal(full.precision, theirs.eval["precision"])
    np.testing.assert_array_equal(full.recall, theirs.eval["recall"])
    scores = score_table(annotations, table, of=of)
    figures = [-1.0 if math.isnan(each) else each for each in dataclasses.astuple(scores)[:12]]
    np.testing.assert_array_equal(figures, theirs.stats)
    for label, score in enumerate(scores.per_class):
        of_class = theirs.eval["precision"][:, :, label, 0, -1]
        expected = [
            each.mean() if (each > -1).all() else math.nan for each in (of_class, of_class[0])
        ]
        assert (score.ap, score.ap50) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("part", range(4))
def test_fuzz(part: int, scene: Any, pycocotools: Any) -> None:
    """Crowds, empty images, ties, 0-based gapped ids, unsorted image ids, area bounds."""
    for seed in range(part, FUZZ_SEEDS, 4):
        images, boxes, classes, most = [(6, 6, 3, 12), (1, 30, 1, 240), (4, 9, 6, 30)][seed % 3]
        kind = scene(images, boxes, classes, seed % 5 / 10, most if seed % 11 else 0)
        annotations, drawn = kind.draw(seed)
        table = tabulate(annotations, drawn)
        if seed % 7 == 0:  # as files hold them: turned round, or without a side
            table.xywh[::5, 2] *= -1
            table.xywh[1::5, 3] = 0
        assert_equals_pycocotools(annotations, table, pycocotools)


def test_1203_classes(scene: Any, pycocotools: Any) -> None:
    annotations, drawn = scene(classes=1203, boxes=4, detections=6).draw(2)
    assert_equals_pycocotools(annotations, tabulate(annotations, drawn), pycocotools)
    per_class = score_detections(annotations, drawn).per_class
    assert len(per_class) == 1203
    assert sum(score.num_boxes == 0 for score in per_class) > 1000
    assert all(math.isnan(score.ap) for score in per_class if not score.num_boxes)


def test_masks_equal_pycocotools(scene: Any, pycocotools: Any) -> None:
    annotations, drawn = scene(images=4).draw(11)
    y, x = np.mgrid[:200, :200]
    codes = []
    for number, (x1, y1, x2, y2) in enumerate(annotations.boxes.tolist()):
        inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2) & ((x + y) % 3 > 0)
        codes.append(encode_bitmap(inside) if number % 3 else NO_MASK)
    annotations = dataclasses.replace(annotations, masks=MaskCodes.join(codes))
    drawn = [dataclasses.replace(each, masks=torch.rand(len(each), 7, 7)) for each in drawn]
    table = tabulate(annotations, drawn, with_masks=True)
    assert_equals_pycocotools(annotations, table, pycocotools, of="segm")


def test_hundreds_of_masks(scene: Any, pycocotools: Any) -> None:
    """pycocotools' area of a list fails beyond 255; its loadRes asks one by one."""
    annotations, drawn = scene(images=2, boxes=8, classes=2, crowds=0.0, detections=900).draw(6)
    assert max(len(of_image) for of_image in drawn) > 300
    codes = []
    for row in np.repeat(np.arange(2), np.diff(annotations.offsets)):
        x, y, w, h = annotations.xywh[len(codes)].tolist()
        corners = [x, y, x, y + h, x + w, y + h, x + w, y]
        codes.append(encode_segmentation([corners], annotations.size_of(int(row))))
    annotations = dataclasses.replace(annotations, masks=MaskCodes.join(codes))
    drawn = [dataclasses.replace(each, masks=torch.ones(len(each), 7, 7)) for each in drawn]
    table = tabulate(annotations, drawn, with_masks=True)
    assert_equals_pycocotools(annotations, table, pycocotools, of="segm")


def test_masks_are_asked_for_where_there_are_none(scene: Any) -> None:
    annotations, drawn = scene().draw(1)
    masked = [dataclasses.replace(each, masks=torch.rand(len(each), 7, 7)) for each in drawn]
    with pytest.raises(InputError, match="scoring masks needs ground truth with masks"):
        score_table(annotations, tabulate(annotations, masked, with_masks=True), of="segm")
    blank = MaskCodes.join([NO_MASK] * len(annotations.labels))
    annotations = dataclasses.replace(annotations, masks=blank)
    with pytest.raises(InputError, match="scoring masks needs detections with masks"):
        score_table(annotations, tabulate(annotations, drawn), of="segm")


def test_by_hand(annotations_of: Any) -> None:
    """One of two boxes is detected, with a false alarm below it: precision 1 up to recall 0.5."""
    annotations = annotations_of([(100, 100)], [[[0, 0, 40, 40, 0, 0], [50, 50, 90, 90, 0, 0]]])
    rows = [([0.0, 0, 40, 40], 0.9, 0), ([50.0, 0, 90, 30], 0.8, 0)]
    scores = score_detections(annotations, [detections(7, rows)])
    assert scores.ap == pytest.approx(51 / 101)
    assert scores.ap50 == pytest.approx(51 / 101)
    assert scores.ar1 == scores.ar100 == pytest.approx(0.5)
    assert math.isnan(scores.ap_small)
    assert scores.to_json()["ap_small"] is None
    assert [score.num_boxes for score in scores.per_class] == [2, 0, 0]
    assert math.isnan(scores.per_class[1].ap)


def test_nothing_detected(annotations: Annotations) -> None:
    scores = score_detections(annotations, [])
    assert scores.ap == scores.ap50 == scores.ar100 == 0.0
    assert scores.num_detections == 0
    assert scores.num_images == 3


def test_boxes_alone_need_no_sizes_of_images(scene: Any) -> None:
    annotations, drawn = scene().draw(3)
    odd = dataclasses.replace(annotations, sizes_hw=annotations.sizes_hw * 10**12 - 10**13)
    scores = score_detections(annotations, drawn)
    assert score_detections(odd, drawn).to_json() == scores.to_json()


def test_boxes_travel_as_xywh(annotations: Annotations) -> None:
    annotation = ground_truth_json(annotations)["annotations"][-1]
    np.testing.assert_array_equal(annotation["bbox"], [20.5, 30.25, 20.25, 29.75])
    assert ground_truth_json(annotations)["annotations"][2]["iscrowd"] == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (detections(99, []), "image id 99, which is not in the ground truth"),
        (detections(7, [([0.0, 0, 1, 1], 0.5, 3)]), r"image id 7 hold a label outside 0..2"),
        (detections(7, [([0.0, 0, 1, 1], math.nan, 0)]), "hold a box or score that is NaN or Inf"),
        (detections(7, [([0.0, 0, math.inf, 1], 0.5, 0)]), "hold a box or score that is NaN"),
    ],
)
def test_impossible_detections(annotations: Annotations, bad: Detections, message: str) -> None:
    with pytest.raises(InputError, match=message):
        score_detections(annotations, [bad])


def test_masks_of_a_foreign_store_never_reach_pycocotools(annotations: Annotations) -> None:
    codes = [b"ooooo"] * len(annotations.labels)
    hostile = dataclasses.replace(annotations, masks=MaskCodes.join(codes))
    with pytest.raises(StoreError, match="a mask of 5 bytes does not cover its image of 200 x"):
        ground_truth_json(hostile)


def test_a_child_forked_after_scoring_is_told_why_it_cannot(nursery: Any) -> None:
    """It would wait for ever for its parent's threads."""
    script = """
import os
import numpy as np
from cachedet.evaluation.metrics import score_detections
from cachedet.structures import Annotations, CategoryMap
nothing = Annotations(
    image_ids=np.zeros(0, dtype=int), file_names=(), sizes_hw=np.zeros((0, 2), dtype=int),
    offsets=np.zeros(1, dtype=int), boxes=np.zeros((0, 4)), labels=np.zeros(0, dtype=int),
    crowd=np.zeros(0, dtype=bool), areas=np.zeros(0),
    categories=CategoryMap(ids=(1,), names=("a",)),
)
score_detections(nothing, [])
if not os.fork():
    try:
        score_detections(nothing, [])
    except ValueError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""
    with nursery.start(script) as process:
        out, err = process.communicate(timeout=60)
    assert "forked by one that had scored detections" in out, err
    assert "start it with `spawn`" in out

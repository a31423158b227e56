"""The matching and its precision against pycocotools, and against plain loops."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.data.masks import encode_bitmap, encode_segmentation
from cachedet.errors import InputError
from cachedet.evaluation import matches as matches_module
from cachedet.evaluation.detection_table import tabulate
from cachedet.evaluation.matches import MatchTable, match_detections
from cachedet.evaluation.metrics import coco_results, ground_truth_json, score_matches
from cachedet.evaluation.precision import accumulate
from cachedet.structures import Annotations, Detections, MaskCodes

FIGURES = 12
any_scene = settings(max_examples=40, deadline=None)


def figures_of(annotations: Annotations, matches: MatchTable) -> list[float]:
    scores = score_matches(annotations, matches, num_detections=0)
    return [-1.0 if np.isnan(value) else value for value in dataclasses.astuple(scores)[:FIGURES]]


def assert_equals_pycocotools(
    annotations: Annotations, drawn: list[Detections], pycocotools: Any, of: Any = "bbox"
) -> None:
    with_masks = of == "segm"
    rows = coco_results(annotations, drawn)
    if with_masks:
        rows = [{key: row[key] for key in row if key != "bbox"} for row in rows]
    theirs = pycocotools(ground_truth_json(annotations), rows, of=of)
    table = tabulate(annotations, drawn, with_masks=with_masks)
    matches = match_detections(annotations, table, of=of)
    ours = accumulate(matches)
    np.testing.assert_array_equal(ours.precision, theirs.eval["precision"][..., -1])
    np.testing.assert_array_equal(ours.recall, theirs.eval["recall"][..., -1])
    np.testing.assert_allclose(figures_of(annotations, matches), theirs.stats, rtol=0, atol=1e-12)


@any_scene
@given(seed=st.integers(0, 2**32 - 1))
def test_equals_pycocotools(seed: int, scene: Any, pycocotools: Any) -> None:
    """Crowds, empty images, ties, 0-based gapped ids, unsorted image ids, area bounds."""
    annotations, drawn = scene().draw(seed)
    assert_equals_pycocotools(annotations, drawn, pycocotools)


def test_many_of_one_class(scene: Any, pycocotools: Any) -> None:
    """More than 100 detections of a class in an image, dozens of candidates each."""
    annotations, drawn = scene(images=3, boxes=60, classes=1, detections=400).draw(5)
    assert max(len(of_image) for of_image in drawn) > 150
    assert_equals_pycocotools(annotations, drawn, pycocotools)


def test_a_class_without_annotations_and_1203_classes(scene: Any, pycocotools: Any) -> None:
    annotations, drawn = scene(classes=1203, boxes=4, detections=6).draw(2)
    theirs = pycocotools(ground_truth_json(annotations), coco_results(annotations, drawn))
    matches = match_detections(annotations, tabulate(annotations, drawn))
    np.testing.assert_allclose(figures_of(annotations, matches), theirs.stats, rtol=0, atol=1e-12)
    per_class = score_matches(annotations, matches, num_detections=0).per_class
    assert len(per_class) == 1203
    absent = [score.num_boxes == 0 for score in per_class]
    assert sum(absent) > 1000
    assert all(np.isnan(score.ap) for score, gone in zip(per_class, absent, strict=True) if gone)


def test_masks_equal_pycocotools(scene: Any, pycocotools: Any) -> None:
    annotations, drawn = scene(images=4).draw(11)
    y, x = np.mgrid[:200, :200]
    codes = []
    for x1, y1, x2, y2 in annotations.boxes.tolist():
        inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2) & ((x + y) % 3 > 0)
        codes.append(encode_bitmap(inside))
    annotations = dataclasses.replace(annotations, masks=MaskCodes.join(codes))
    drawn = [dataclasses.replace(each, masks=torch.rand(len(each), 7, 7)) for each in drawn]
    assert_equals_pycocotools(annotations, drawn, pycocotools, of="segm")


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
    assert_equals_pycocotools(annotations, drawn, pycocotools, of="segm")


def test_masks_are_asked_for_where_there_are_none(scene: Any) -> None:
    annotations, drawn = scene().draw(1)
    with pytest.raises(InputError, match="scoring masks needs detections with masks"):
        match_detections(annotations, tabulate(annotations, drawn), of="segm")
    drawn = [dataclasses.replace(each, masks=torch.rand(len(each), 7, 7)) for each in drawn]
    with pytest.raises(InputError, match="scoring masks needs ground truth with masks"):
        match_detections(annotations, tabulate(annotations, drawn, with_masks=True), of="segm")


@any_scene
@given(seed=st.integers(0, 2**32 - 1))
def test_partners_are_those_of_plain_loops(seed: int, scene: Any) -> None:
    """COCO's loop as prose has it, for one threshold, with the number of the box drawn."""
    annotations, drawn = scene(images=3).draw(seed)
    table = tabulate(annotations, drawn)
    matches = match_detections(annotations, table)
    threshold = seed % 10
    expected = np.full(len(table), -1)
    for row in range(len(annotations)):
        for label in range(len(annotations.categories)):
            mine = np.flatnonzero((table.rows == row) & (table.labels == label))
            mine = mine[np.argsort(-table.scores[mine], kind="stable")]
            span = annotations.boxes_of(row)
            boxes = [b for b in range(span.start, span.stop) if annotations.labels[b] == label]
            boxes.sort(key=lambda b: bool(annotations.crowd[b]))
            taken: set[int] = set()
            for number in mine.tolist():
                best, most = -1, matches.iou_thresholds[threshold]
                for box in boxes:
                    if box in taken and not annotations.crowd[box]:
                        continue
                    if best >= 0 and not annotations.crowd[best] and annotations.crowd[box]:
                        break
                    overlap = iou(
                        table.xywh[number], annotations.boxes[box], bool(annotations.crowd[box])
                    )
                    if overlap >= most:
                        best, most = box, overlap
                if best >= 0:
                    expected[number] = best
                    taken.add(best)
    np.testing.assert_array_equal(matches.partner[threshold], expected[matches.source])
    np.testing.assert_array_equal(matches.matched[0, threshold], matches.partner[threshold] >= 0)


def iou(xywh: Any, xyxy: Any, crowd: bool) -> float:
    x1, y1, w, h = xywh
    width = min(x1 + w, xyxy[2]) - max(x1, xyxy[0])
    height = min(y1 + h, xyxy[3]) - max(y1, xyxy[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = w * h if crowd else w * h + (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1]) - width * height
    return float(width * height / union)


def test_small_turns_change_nothing(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations, drawn = scene(images=20, boxes=12).draw(3)
    table = tabulate(annotations, drawn)
    whole = match_detections(annotations, table)
    monkeypatch.setattr(matches_module, "_PAIRS_AT_ONCE", 2)
    parts = match_detections(annotations, table)
    np.testing.assert_array_equal(whole.matched, parts.matched)
    np.testing.assert_array_equal(whole.partner, parts.partner)


def test_ten_thousand_detections_in_a_image(annotations_of: Any) -> None:
    """The limit of a class and image comes first, so the rest costs nothing."""
    boxes = [[float(n % 40) * 4, float(n // 40) * 4, float(n % 40) * 4 + 9, n // 40 * 4 + 9, 0, 0]
             for n in range(500)]  # fmt: skip
    annotations = annotations_of([(200, 200)], [boxes])
    corners = torch.rand(12_000, 2) * 150
    drawn = Detections(
        image_id=7,
        boxes=torch.cat([corners, corners + 9], dim=1),
        scores=torch.rand(12_000),
        labels=torch.zeros(12_000, dtype=torch.int64),
    )
    matches = match_detections(annotations, tabulate(annotations, [drawn]))
    assert len(matches.scores) == 100
    assert float(matches.scores.min()) >= float(drawn.scores.sort().values[-101])
    unlimited = match_detections(annotations, tabulate(annotations, [drawn]), most_per_class=None)
    assert len(unlimited.scores) == 12_000


def test_a_threshold_that_was_not_matched_at(scene: Any) -> None:
    annotations, drawn = scene().draw(1)
    matches = match_detections(annotations, tabulate(annotations, drawn))
    assert matches.threshold(0.75) == 5
    with pytest.raises(ValueError, match="matched at IoU .*, asked for 0.3"):
        matches.threshold(0.3)

"""Which images are shown, and with which boxes."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cachedet.errors import InputError
from cachedet.evaluation.error_kinds import KIND_NAMES
from cachedet.reporting.image_sheet import (
    ImageScores,
    Sheet,
    choose_images,
    make_sheet,
    score_images,
)


def iou(one: Any, other: Any) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(both / (sum(areas) - both))


def sheet_of(annotations: Any, analyses: Any, images: Path, *, most: int) -> Sheet:
    return make_sheet(annotations, analyses, images=images, most=most, on_done=lambda _: None)


def test_f1_of_images_as_plain_loops_find_it(kit: Any) -> None:
    annotations = kit.annotations(images=9)
    every = kit.detections(
        annotations, seed=4, skill=0.7, clutter=12
    )  # the cut leaves right ones out
    (analysis,) = kit.analyse(annotations, run=every)
    cut = analysis.curves.best.score
    scores = score_images(annotations, analysis)
    for row, detections in enumerate(every):
        span = annotations.boxes_of(row)
        boxes, labels = annotations.boxes[span], annotations.labels[span]
        free, right, detected = set(range(len(boxes))), 0, 0
        for number in np.argsort(-detections.scores.numpy(), kind="stable").tolist():
            if float(detections.scores[number]) < cut:
                continue
            detected += 1
            near = {
                n: iou(detections.boxes[number].tolist(), boxes[n])
                for n in free
                if labels[n] == detections.labels[number]
            }
            best = max(near, key=lambda n: near[n], default=None)
            if best is not None and near[best] >= 0.5:
                free.remove(best)
                right += 1
        assert scores.right[row] == right
        assert scores.wrong[row] == len(boxes) + detected - 2 * right
        if len(boxes) + detected:
            assert scores.f1[row] == pytest.approx(2 * right / (len(boxes) + detected))
        else:
            assert math.isnan(scores.f1[row])


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30),
    st.integers(0, 20),
)
def test_no_image_is_both_best_and_worst(counts: list[tuple[int, int]], most: int) -> None:
    right, wrong = (np.array(of_all, dtype=np.int64) for of_all in zip(*counts, strict=True))
    total = 2 * right + wrong
    f1 = np.where(total > 0, 2 * right / np.maximum(total, 1), np.nan)
    best, worst = choose_images(ImageScores(f1=f1, right=right, wrong=wrong), most=most)
    known = int((total > 0).sum())
    assert not set(best) & set(worst)
    assert len(best) + len(worst) == min(known, 2 * most)
    assert len(set(best + worst)) == len(best) + len(worst)
    assert all(f1[b] >= f1[w] for b in best for w in worst)
    assert [f1[row] for row in best] == sorted((f1[row] for row in best), reverse=True)
    assert [f1[row] for row in worst] == sorted(f1[row] for row in worst)


def test_boxes_and_detections_are_those_of_the_run(kit: Any, two_runs: Any, tmp_path: Path) -> None:
    annotations, analyses = two_runs
    sheet = sheet_of(annotations, analyses, kit.photographs(tmp_path, annotations), most=3)
    assert len(sheet.images) == len(annotations) - 1  # the last has neither boxes nor detections
    assert sheet.cuts == tuple(run.curves.best.score for run in analyses)
    for image in sheet.images:
        span = annotations.boxes_of(image.row)
        np.testing.assert_allclose([box[:4] for box in image.boxes] or np.zeros((0, 4)),
                                   annotations.xywh[span], atol=0.051)  # fmt: skip
        assert [box[4] for box in image.boxes] == annotations.labels[span].tolist()
        for analysis, detections in zip(analyses, image.detections, strict=True):
            table = analysis.table
            numbers = np.flatnonzero(table.rows == image.row)
            assert len(detections) == len(numbers)
            scores = [detection[4] for detection in detections]
            assert scores == sorted(scores, reverse=True)
            np.testing.assert_allclose(sorted(scores), np.sort(table.scores[numbers]), atol=5.1e-5)
            for x, y, width, height, _, label, kind, box in detections:
                assert (KIND_NAMES[int(kind)] == "right") == (box >= 0)
                if box >= 0:
                    left, top, across, down, box_label, _ = image.boxes[int(box)]
                    assert box_label == label
                    ends = [left, top, left + across, top + down]
                    assert iou([x, y, x + width, y + height], ends) >= 0.5 - 1e-2


def test_images_are_shrunk_not_cut(kit: Any, two_runs: Any, tmp_path: Path) -> None:
    annotations, analyses = two_runs
    sheet = sheet_of(annotations, analyses, kit.photographs(tmp_path, annotations), most=1)
    assert [image.is_worst for image in sheet.images] == [False, True]
    for image in sheet.images:
        content = base64.b64decode(image.source.removeprefix("data:image/jpeg;base64,"))
        with Image.open(io.BytesIO(content)) as decoded:
            assert decoded.format == "JPEG"
            assert decoded.size == (384, 288)


def test_what_cannot_be_read_is_named_and_left_out(kit: Any, two_runs: Any, tmp_path: Path) -> None:
    annotations, analyses = two_runs
    images = kit.photographs(tmp_path / "images", annotations)
    Image.new("RGB", (10, 10)).save(images / annotations.file_names[0])
    (images / annotations.file_names[1]).write_bytes(b"no image")
    (images / annotations.file_names[2]).unlink()
    Image.new("RGB", (640, 480)).save(tmp_path / "secret.jpg")
    names = (*annotations.file_names[:3], "../secret.jpg", *annotations.file_names[4:])
    moved = dataclasses.replace(annotations, file_names=names)
    sheet = sheet_of(moved, analyses, images, most=9)
    assert sorted(image.row for image in sheet.images) == [4]
    reasons = "\n".join(sheet.unreadable)
    assert "is 10x10, the scored image was 640x480" in reasons
    assert "not an image" in reasons
    assert "No such file" in reasons
    assert "'../secret.jpg' leaves the folder" in reasons


def test_a_wrong_folder_is_refused(two_runs: Any, tmp_path: Path) -> None:
    annotations, analyses = two_runs
    with pytest.raises(InputError, match=r"--images expects the folder .* got .*nowhere"):
        sheet_of(annotations, analyses, tmp_path / "nowhere", most=2)
    with pytest.raises(InputError, match="holds none of the 4 images to show; the first: "):
        sheet_of(annotations, analyses, tmp_path, most=2)


def test_200_images_weigh_less_than_5_mb(kit: Any, tmp_path: Path) -> None:
    annotations = kit.annotations(images=201, boxes=12)  # the last has nothing to show
    analyses = kit.analyse(
        annotations,
        resamples=2,
        one=kit.detections(annotations, seed=1, skill=0.7, clutter=100),
        other=kit.detections(annotations, seed=2, skill=0.5, clutter=100),
    )
    sheet = sheet_of(annotations, analyses, kit.photographs(tmp_path, annotations), most=100)
    assert len(sheet.images) == 200
    assert sheet.most_detections == 50
    assert sheet.long_side >= 256
    page = kit.page(analyses, sheet=sheet)
    assert len(page.encode()) < 5_000_000

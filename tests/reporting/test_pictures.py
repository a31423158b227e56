"""Which pictures are shown, and with which boxes."""

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
from cachedet.reporting.pictures import (
    PictureScores,
    Sheet,
    choose_pictures,
    make_sheet,
    score_pictures,
)


def iou(one: Any, other: Any) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(both / (sum(areas) - both))


def sheet_of(truth: Any, analyses: Any, images: Path, *, most: int) -> Sheet:
    return make_sheet(truth, analyses, images=images, most=most, on_done=lambda _: None)


def test_f1_of_pictures_as_plain_loops_find_it(kit: Any) -> None:
    truth = kit.truth(pictures=9)
    found = kit.found(truth, seed=4, skill=0.7, clutter=12)  # the cut leaves right ones out
    (analysis,) = kit.analyse(truth, found)
    cut = analysis.curves.best.score
    scores = score_pictures(truth, analysis)
    for row, own in enumerate(found):
        boxes, labels = truth.boxes[truth.boxes_of(row)], truth.labels[truth.boxes_of(row)]
        free, right, detected = set(range(len(boxes))), 0, 0
        for place in np.argsort(-own.scores.numpy(), kind="stable").tolist():
            if float(own.scores[place]) < cut:
                continue
            detected += 1
            near = {
                n: iou(own.boxes[place].tolist(), boxes[n])
                for n in free
                if labels[n] == own.labels[place]
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
def test_no_picture_is_both_best_and_worst(counts: list[tuple[int, int]], most: int) -> None:
    right, wrong = (np.array(own, dtype=np.int64) for own in zip(*counts, strict=True))
    total = 2 * right + wrong
    f1 = np.where(total > 0, 2 * right / np.maximum(total, 1), np.nan)
    best, worst = choose_pictures(PictureScores(f1=f1, right=right, wrong=wrong), most=most)
    known = int((total > 0).sum())
    assert not set(best) & set(worst)
    assert len(best) + len(worst) == min(known, 2 * most)
    assert len(set(best + worst)) == len(best) + len(worst)
    assert all(f1[b] >= f1[w] for b in best for w in worst)
    assert [f1[row] for row in best] == sorted((f1[row] for row in best), reverse=True)
    assert [f1[row] for row in worst] == sorted(f1[row] for row in worst)


def test_boxes_and_detections_are_those_of_the_run(kit: Any, two_runs: Any, tmp_path: Path) -> None:
    truth, analyses = two_runs
    sheet = sheet_of(truth, analyses, kit.photographs(tmp_path, truth), most=3)
    assert len(sheet.pictures) == len(truth) - 1  # the last has neither boxes nor detections
    assert sheet.cuts == tuple(own.curves.best.score for own in analyses)
    for picture in sheet.pictures:
        own = truth.boxes_of(picture.row)
        np.testing.assert_allclose([box[:4] for box in picture.boxes] or np.zeros((0, 4)),
                                   truth.xywh[own], atol=0.051)  # fmt: skip
        assert [box[4] for box in picture.boxes] == truth.labels[own].tolist()
        for analysis, detections in zip(analyses, picture.detections, strict=True):
            table = analysis.table
            numbers = np.flatnonzero(table.rows == picture.row)
            assert len(detections) == len(numbers)
            scores = [detection[4] for detection in detections]
            assert scores == sorted(scores, reverse=True)
            np.testing.assert_allclose(sorted(scores), np.sort(table.scores[numbers]), atol=5.1e-5)
            for x, y, width, height, _, label, kind, box in detections:
                assert (KIND_NAMES[int(kind)] == "right") == (box >= 0)
                if box >= 0:
                    found = picture.boxes[int(box)]
                    ends = [found[0], found[1], found[0] + found[2], found[1] + found[3]]
                    assert found[4] == label
                    assert iou([x, y, x + width, y + height], ends) >= 0.5 - 1e-2


def test_pictures_are_shrunk_not_cut(kit: Any, two_runs: Any, tmp_path: Path) -> None:
    truth, analyses = two_runs
    sheet = sheet_of(truth, analyses, kit.photographs(tmp_path, truth), most=1)
    assert [picture.is_worst for picture in sheet.pictures] == [False, True]
    for picture in sheet.pictures:
        content = base64.b64decode(picture.source.removeprefix("data:image/jpeg;base64,"))
        with Image.open(io.BytesIO(content)) as decoded:
            assert decoded.format == "JPEG"
            assert decoded.size == (384, 288)


def test_what_cannot_be_read_is_named_and_left_out(kit: Any, two_runs: Any, tmp_path: Path) -> None:
    truth, analyses = two_runs
    images = kit.photographs(tmp_path / "images", truth)
    Image.new("RGB", (10, 10)).save(images / truth.file_names[0])
    (images / truth.file_names[1]).write_bytes(b"no picture")
    (images / truth.file_names[2]).unlink()
    Image.new("RGB", (640, 480)).save(tmp_path / "secret.jpg")
    names = (*truth.file_names[:3], "../secret.jpg", *truth.file_names[4:])
    moved = dataclasses.replace(truth, file_names=names)
    sheet = sheet_of(moved, analyses, images, most=9)
    assert sorted(picture.row for picture in sheet.pictures) == [4]
    told = "\n".join(sheet.unreadable)
    assert "is 10x10, the scored picture was 640x480" in told
    assert "not a picture" in told
    assert "No such file" in told
    assert "'../secret.jpg' leaves the folder" in told


def test_a_wrong_folder_is_refused(two_runs: Any, tmp_path: Path) -> None:
    truth, analyses = two_runs
    with pytest.raises(InputError, match=r"--images expects the folder .* got .*nowhere"):
        sheet_of(truth, analyses, tmp_path / "nowhere", most=2)
    with pytest.raises(InputError, match="holds none of the 4 pictures to show; the first: "):
        sheet_of(truth, analyses, tmp_path, most=2)


def test_200_pictures_weigh_less_than_5_mb(kit: Any, tmp_path: Path) -> None:
    truth = kit.truth(pictures=201, boxes=12)  # the last has nothing to show
    analyses = kit.analyse(
        truth,
        kit.found(truth, seed=1, skill=0.7, clutter=100),
        kit.found(truth, seed=2, skill=0.5, clutter=100),
        resamples=2,
    )
    sheet = sheet_of(truth, analyses, kit.photographs(tmp_path, truth), most=100)
    assert len(sheet.pictures) == 200
    assert sheet.most_detections == 50
    assert sheet.long_side >= 256
    page = kit.page(["one", "other"], analyses, sheet=sheet)
    assert len(page.encode()) < 5_000_000

"""Detections of any producer: files, what is refused, and what is scored as it stands."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from cachedet.data.coco import annotations_of, load_annotations
from cachedet.errors import InputError
from cachedet.evaluation.detection_table import (
    count_oddities,
    read_results,
    table_of_results,
    tabulate,
)
from cachedet.evaluation.metrics import coco_results, score_detections, score_table
from cachedet.structures import Annotations, Detections

GOOD = {"image_id": 7, "category_id": 5, "bbox": [1, 2, 30.5, 40], "score": 0.5}
BOXES = [[[10, 10, 60, 60, 0, 0], [70, 70, 90, 95, 1, 0]]]


@pytest.fixture
def one(annotations_of: Any) -> Annotations:
    return annotations_of([(100, 120)], BOXES)


def test_a_table_passes_through(scene: Any) -> None:
    annotations, drawn = scene().draw(1)
    table = tabulate(annotations, drawn)
    assert tabulate(annotations, table) is table
    again = table_of_results(annotations, coco_results(annotations, drawn))
    for name in ("rows", "labels", "xywh", "scores"):
        np.testing.assert_array_equal(getattr(table, name), getattr(again, name))
    assert len(tabulate(annotations, [])) == 0


@pytest.mark.parametrize("seed", range(8))
def test_files_of_any_producer_score_as_with_pycocotools(
    seed: int, pycocotools: Any, tmp_path: Path
) -> None:
    """In double precision, with boxes that have no area or lie outside, decimals and ties."""
    rng = np.random.default_rng(seed)
    annotations, results = raw_files(rng)
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    (tmp_path / "results.json").write_text(json.dumps(results))
    path = tmp_path / "annotations.json"
    scored, found = annotations_of(load_annotations(path), where=path, keep_all=True)
    assert found.counts["boxes"] == len(annotations["annotations"])
    scores = score_table(scored, read_results(tmp_path / "results.json", scored))
    official = pycocotools(annotations, results).stats
    ours = [-1 if math.isnan(v) else v for v in dataclasses.astuple(scores)[:12]]
    np.testing.assert_allclose(ours, official, rtol=0, atol=1e-12)
    assert scores.ap > 0


def raw_files(rng: np.random.Generator) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    images = [
        {"id": int(n), "file_name": f"{n}.jpg", "height": 100, "width": 100}
        for n in rng.permutation(40)[:8]
    ]
    annotations, results = [], []
    for number in range(40):
        x, y, w, h = (rng.random(4) * [80, 80, 40, 40]).round(2).tolist()
        if number % 10 == 0:
            w = 0.0
        if number % 10 == 5:
            x += 200
        image = images[int(rng.integers(8))]["id"]
        category = int(rng.choice([0, 4, 9]))
        annotations.append(
            {"id": 1000 - number, "image_id": image, "category_id": category,
             "bbox": [x, y, w, h], "area": w * h, "iscrowd": int(number % 11 == 0)}
        )  # fmt: skip
        for _ in range(3):
            moved = np.array([x, y, w, h]) + rng.normal(0, 2, 4).round(2)
            results.append(
                {"image_id": image, "category_id": category, "bbox": moved.tolist(),
                 "score": float(rng.choice([0.3, 0.1 + 0.2, rng.random()]))}
            )  # fmt: skip
        part = float(rng.choice([0.5, 0.6, 0.75, 0.9]))  # IoU at the thresholds, to rounding
        results.append({**results[-1], "bbox": [x, y, w, h * part], "score": rng.random()})
    categories = [{"id": n, "name": f"class {n}"} for n in (9, 0, 4)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 8}, r"\[1\] has image_id 8, which is not an image of the annotations; 1 "),
        ({"image_id": "07"}, r"\[1\] has image_id '07', which is not an image"),
        ({"image_id": 7.5}, r"\[1\] has image_id 7\.5, which is not an image .* whole numbers"),
        ({"category_id": 0}, r"category_id 0, which is not a class .* know 3 ids from 2 to 90"),
        ({"category_id": True}, "has category_id True, which is not a class"),
        ({"score": math.nan}, r"\[1\] needs a finite `score`, got nan"),
        ({"score": None}, "needs a finite `score`, got None"),
        ({"score": math.inf}, "needs a finite `score`"),  # as JSON reads 1e999
        ({"score": 10**400}, "needs a finite `score`"),
        ({"bbox": [1, 2, 3]}, r"needs a finite `bbox` \[x, y, width, height\] or a `segmentation`"),
        ({"bbox": [1, 2, 3, math.inf]}, r"needs a finite `bbox`"),
        ({"bbox": [1, 2, 3, 1e300]}, r"needs a finite `bbox`"),
        ({"bbox": None}, r"needs a finite `bbox` .* or a `segmentation`, got None, None"),
        ({"bbox": None, "segmentation": None}, r"\[1\] needs a finite `bbox`.* got None, None"),
        ({"bbox": None, "segmentation": []}, r"\[1\] needs a finite `bbox`.* got None, \[\]"),
        ({"bbox": [], "segmentation": {}}, r"\[1\] needs a finite `bbox`.* got \[\], \{\}"),
        ({"score": "0.5"}, r"\[1\] needs a finite `score`, got '0.5'"),
        ({"score": True}, r"\[1\] needs a finite `score`, got True"),
        (
            {"category_id": [2]},
            r"has category_id \[2\], which is not a class .*whole numbers; 1 de",
        ),
        ({"image_id": "x" * 10**6}, r"has image_id 'x+\.\.\.x+', which is not an image"),
        (
            {"segmentation": {"size": [100, 120], "counts": "xx"}},
            r"results\[0\]: `segmentation`: the compressed RLE does not cover 100 x 120 pixels",
        ),
        (
            {"segmentation": {"size": [100, 120], "counts": [100 * 120]}},
            r"results\[0\] has no `segmentation`, but 1 detections have one",
        ),
    ],
)
def test_rows_that_are_refused(one: Annotations, change: dict[str, Any], message: str) -> None:
    first = GOOD | change if "compressed" in message else GOOD
    with pytest.raises(InputError, match=message):
        table_of_results(one, [first, GOOD | change])


def test_ids_that_are_text_or_floats_of_whole_numbers(one: Annotations) -> None:
    table = table_of_results(one, [GOOD | {"image_id": "7"}, GOOD | {"category_id": 5.0}])
    expected = table_of_results(one, [GOOD, GOOD])
    np.testing.assert_array_equal(table.rows, expected.rows)
    np.testing.assert_array_equal(table.labels, expected.labels)
    assert expected.notes == ()
    told = "2 ids read as whole numbers, the first is image_id '7' of detection 0"
    assert table.notes == (f"results: {told}",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is not a COCO results file: expected a list of detections, got a dict"),
        (
            '{"annotations": [], "images": []}',
            "got a dict with annotations, images; an annotation f",
        ),
        ("null", "got a NoneType"),
        ('[{"image_id": 1', "it ends too early"),
        ("[", "is not JSON in UTF-8"),
        ("[" * 100_000, "is not JSON in UTF-8"),
        ("[3]", r"results.json\[0\] is not an object, got 3"),
    ],
)
def test_files_that_are_refused(one: Annotations, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_results(path, one)


def test_an_empty_file_scores_nothing(one: Annotations, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("[]")
    table = read_results(path, one)
    assert len(table) == 0
    assert score_table(one, table).ap == 0.0


def test_a_file_that_is_not_there(one: Annotations, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--detections expects a COCO results file; there is no"):
        read_results(tmp_path / "none.json", one)


@pytest.mark.parametrize("box", [{}, {"bbox": None}, {"bbox": []}])
def test_a_box_that_is_null_is_the_masks(one: Annotations, box: dict[str, Any]) -> None:
    row = {"image_id": 7, "category_id": 2, "score": 0.5, **box}
    polygon = [[-30.0, 40, 60, -40, 160, 40, 60, 130]]
    table = table_of_results(one, [{**row, "segmentation": polygon}] * 3)
    theirs = coco_mask.toBbox(coco_mask.merge(coco_mask.frPyObjects(polygon, 100, 120)))
    assert table.xywh.tolist() == [theirs.tolist()] * 3


def test_boxes_of_masks_alone(one: Annotations) -> None:
    runs = [10 * 100 + 10, 50] + [50, 50] * 49 + [100 * 120 - 10 * 100 - 10 - 50 * 99]
    row = {"image_id": 7, "category_id": 2, "score": 0.5,
           "segmentation": {"size": [100, 120], "counts": runs}}  # fmt: skip
    table = table_of_results(one, [row])
    assert table.xywh.tolist() == [[10, 10, 50, 50]]
    assert table.masks is not None
    assert score_table(one, table).per_class[0].ap == pytest.approx(1.0)


def test_detections_without_masks_among_others(one: Annotations) -> None:
    with_mask = Detections(
        image_id=7,
        boxes=torch.tensor([[1.0, 1, 9, 9]]),
        scores=torch.tensor([0.5]),
        labels=torch.tensor([0]),
        masks=torch.rand(1, 7, 7),
    )
    without = dataclasses.replace(with_mask, masks=None)
    with pytest.raises(InputError, match="image id 7 have no masks, others have"):
        coco_results(one, [with_mask, without])


def test_oddities_are_counted_and_scored_as_they_stand(one: Annotations) -> None:
    odd = Detections(
        image_id=7,
        boxes=torch.tensor(
            [
                [10.0, 10, 60, 60],
                [10, 10, 60, 60],
                [100, 80, 150, 90],
                [5, 5, 5, 9],
                [0, 0, 120.9, 9],
            ]
        ),
        scores=torch.tensor([0.9, 0.9, 0.8, 0.7, 1.5]),
        labels=torch.tensor([0, 0, 0, 0, 1]),
    )
    assert count_oddities(one, [odd], most_per_class=3) == {
        "boxes beyond their image": 1,
        "boxes without area": 1,
        "exact duplicates": 1,
        "scores outside 0..1": 1,
        "past the limit of a class and image": 1,
        "images without detections": 0,
    }
    scores = score_detections(one, [odd])
    assert scores.num_detections == 5
    assert scores.per_class[0].ap == pytest.approx(1.0), "the false alarms come after the hit"
    assert count_oddities(one, [])["images without detections"] == 1

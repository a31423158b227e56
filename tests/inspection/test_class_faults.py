from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cachedet.config.presets import find_config
from cachedet.config.run import load_train_config

NAMES = [f"{number}.png" for number in range(6)]
BOXES = [(image, 1, (1 + n, 1, 30, 30)) for image in range(3) for n in range(0, 20, 4)]


def checked(data: Any, train: Sequence[Any], val: Sequence[Any], **classes: Any) -> Any:
    ours, theirs = (classes.get(name, ((1, "cat"), (2, "dog"))) for name in ("ours", "theirs"))
    return data.check(
        data.write("a.json", NAMES[:3], train, ours),
        val=data.write("v.json", NAMES[3:], val, theirs),
    )


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        (((1, "cat"),), "differ; only in train: 2 'dog'; only in val: none"),
        (((1, "cat"), (2, "dog"), (3, "cow")), "differ; only in train: none; only in val: 3 'cow'"),
        (((1, "dog"), (2, "cat")), "have the same names under other ids; only in train: 1 'cat'"),
        (((0, "cat"), (1, "dog")), "have the same names under other ids; only in train: 1 'cat'"),
        (((1, "cat"), (2, "Dog ")), "differ in how they are written; only in train: 2 'dog'"),
    ],
)
def test_classes_that_differ_stop(data: Any, of_kind: Any, classes: Any, text: str) -> None:
    finding = of_kind(checked(data, BOXES, [], theirs=classes), "classes differ")
    assert finding.rank == "stops"
    assert text in finding.text


def test_equal_classes_in_another_order_are_fine(data: Any, of_kind: Any) -> None:
    report = checked(data, BOXES, [], theirs=((2, "dog"), (1, "cat")))
    assert of_kind(report, "classes").rank == "fine"


def test_classes_without_boxes(data: Any, of_kind: Any) -> None:
    report = checked(data, BOXES, [(0, 1, (1, 1, 30, 30))])
    finding = of_kind(report, "no boxes")
    assert (finding.rank, finding.count) == ("look at", 1)
    assert finding.text == "train: 1 class without a box: dog"
    report = checked(data, BOXES, [(0, 2, (1, 1, 30, 30))])
    assert of_kind(report, "val only").text == "1 class of val without a box in train: dog"
    assert of_kind(report, "train only").text == "1 class of train without a box in val: cat"
    few = [*BOXES, (0, 2, (1, 1, 30, 30))]
    report = checked(data, few, few)
    load_train_config(find_config("retinanet_fpn"), ["sampling.kind=class_balanced"])
    assert of_kind(report, "few boxes").advice.endswith("class_balanced draws them more.")
    assert of_kind(report, "few boxes").text == "train: 1 class with fewer than 10 boxes: dog"


def test_many_classes_are_named_by_the_first_five(data: Any, of_kind: Any) -> None:
    classes = tuple((number, f"c{number}") for number in range(1, 9))
    finding = of_kind(checked(data, BOXES, BOXES, ours=classes, theirs=classes), "no boxes")
    assert finding.count == 7
    assert finding.text == "train: 7 classes without a box: c2, c3, c4, c5, c6, ..."


def test_names_written_in_two_ways(data: Any, of_kind: Any) -> None:
    classes = ((1, "traffic light"), (2, "Traffic_Light"), (3, "cat"))
    finding = of_kind(data.check(data.write("a.json", NAMES, BOXES, classes)), "names alike")
    assert "'traffic light' and 'Traffic_Light'" in finding.text


def test_how_often_each_class_occurs(data: Any) -> None:
    boxes = [(0, 1, (1, 1, 30, 30)), (0, 2, (1, 1, 9, 9)), (0, 2, (40, 1, 9, 9)),
             (1, 2, (1, 1, 30, 9))]  # fmt: skip
    report = data.check(data.write("a.json", NAMES, boxes))
    counts = [(one.name, one.boxes, one.images) for one in report.classes]
    assert counts == [("dog", 3, 2), ("cat", 1, 1)]
    assert report.to_json()["classes"][0] == {
        "set_name": "train", "category_id": 2, "name": "dog", "boxes": 3, "images": 2,
    }  # fmt: skip

from __future__ import annotations

import json
from typing import Any

import pytest

from cachedet.config.presets import find_config
from cachedet.config.run import load_train_config

NAMES = [f"{number}.png" for number in range(6)]


def test_small_objects_and_the_size_they_want(data: Any, of_kind: Any) -> None:
    """Of 4 pixels in images of 128: 512 makes 16 of them, 64 makes 2; they are too small."""
    boxes = [(n % 6, 1, (n, n % 9, 4, 4)) for n in range(60)]
    annotations = data.write("a.json", NAMES, boxes)
    fine = of_kind(data.check(annotations), "sizes")
    assert fine.text == "train: objects at --image-size 512: half over 16 pixels, 95 % over 16"
    report = data.check(annotations, image_size=64)
    finding = of_kind(report, "small")
    assert (finding.rank, finding.count) == ("look at", 60)
    assert "60 of 60 objects are under 8 pixels at --image-size 64" in finding.text
    assert "In the images themselves, of 128 pixels, 100% are: larger photographs" in finding.advice
    assert report.sizes is not None
    assert report.sizes.to_json()["wanted_size"] == 256
    assert report.sizes.to_json()["percentiles"]["50"] == pytest.approx(2.0)


def test_large_images_of_small_objects_want_tiles(data: Any, of_kind: Any) -> None:
    data.size_wh = (640, 480)
    for number in range(6):
        data.draw(f"{number}.png", number)
    boxes = [(n % 6, 1, (9 * n, n, 16, 16)) for n in range(60)]
    report = data.check(data.write("a.json", NAMES, boxes), image_size=128)
    advice = of_kind(report, "small").advice
    assert "--image-size 320 brings 95 % above it, at 6.2 times the work and disk" in advice
    assert (
        "; or --views base,tile=3 beside the size you have, which enlarges them 2.6 times" in advice
    )


def test_shapes_that_no_anchor_has(data: Any, of_kind: Any) -> None:
    boxes = [(n % 6, 1, (1, n, 100, 8 if n < 30 else 60)) for n in range(36)]
    finding = of_kind(data.check(data.write("a.json", NAMES, boxes)), "oblong")
    assert (finding.rank, finding.count) == ("look at", 30)
    assert "1 % over 12.5 : 1" in finding.text
    override = "aspect_ratios=[0.2,0.5,1,2,5]"
    assert f"--set detector.anchors.{override} (of R-CNNs detector.rpn." in finding.advice
    presets = {"retinanet_fpn": "anchors", "faster_rcnn_fpn": "rpn"}
    for preset, section in presets.items():
        load_train_config(find_config(preset), [f"detector.{section}.{override}"])


def test_crowds_and_what_lies_outside_are_not_measured(data: Any) -> None:
    report = data.check(data.write("a.json", NAMES, [(0, 1, (120, 0, 64, 64))]))
    assert report.sizes is not None
    assert report.sizes.percentiles[50] == pytest.approx(4 * (8 * 64) ** 0.5, abs=0.1)
    assert data.check(data.write("a.json", NAMES, [])).sizes is None


def test_sizes_known_to_be_wrong_are_not_measured(data: Any) -> None:
    """One entry says 10^6 x 10^6 pixels, one twice its file; a missing image counts."""
    boxes = [(n % 6, 1, (n, n % 9, 40, 40)) for n in range(60)]
    path = data.write("a.json", [*NAMES[:5], "gone.png"], boxes)
    expected = data.check(path).sizes
    assert expected is not None
    content = json.loads(path.read_text())
    content["images"][0] |= {"width": 10**6, "height": 10**6}
    content["images"][1] |= {"width": 256, "height": 192}
    path.write_text(json.dumps(content))
    report = data.check(path)
    assert report.sizes is not None
    assert report.sizes.objects == 40
    assert report.sizes.percentiles == expected.percentiles
    assert "small" not in {one.kind for one in report.findings}


def test_boxes_that_are_dropped_are_in_no_class(data: Any) -> None:
    boxes = [(0, 1, (5, 5, 20, 20)), (0, 2, (5, 5, 0, 9)), (1, 2, (500, 5, 9, 9))]
    report = data.check(data.write("a.json", NAMES, boxes))
    assert {one.name: one.boxes for one in report.classes} == {"cat": 1, "dog": 0}

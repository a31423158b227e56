"""Lists of detections whose names hold anything."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import torch
import yaml

from cachedet.outputs import Kind
from cachedet.prediction.image_report import ImageReport
from cachedet.prediction.listings import coco_images, table, yolo_classes, yolo_lines
from cachedet.prediction.output_plan import _class_folders
from cachedet.structures import CategoryMap, Detections

NAMES = ('a "b", c', "../..", "猫\n: [x]", "con.", "", "A", "a")


def report(count: int, *, frame: int | None = None) -> ImageReport:
    boxes = torch.tensor([[10.0, 20, 30, 60]]).repeat(count, 1)
    return ImageReport(
        file=Path("dir,x/im\udce9.jpg"),
        name="im",
        drawing=None,
        detections=Detections(
            image_id=0,
            boxes=boxes,
            scores=torch.full((count,), 0.75),
            labels=torch.arange(count) % len(NAMES),
        ),
        categories=CategoryMap(ids=tuple(range(5, 5 + len(NAMES))), names=NAMES),
        size_hw=(80, 40),
        frame=frame,
        time=None if frame is None else frame / 10,
    )


def test_a_table_that_spreadsheets_and_programs_read() -> None:
    text = table([report(7), report(0), report(1, frame=15)])
    lines = list(csv.reader(io.StringIO(text)))
    assert len(lines) == 1 + 8
    assert [line[3] for line in lines[1:8]] == list(NAMES)
    assert lines[8][:6] == ["dir,x/im\udce9.jpg", "15", "1.5", NAMES[0], "5", "0.750000"]
    assert Kind.TABLE.pattern.search(text.encode("utf-8", "surrogateescape"))


def test_labels_and_their_names() -> None:
    text = yolo_lines(report(2))
    assert text == (
        "0 0.500000 0.500000 0.500000 0.500000 0.7500\n"
        "1 0.500000 0.500000 0.500000 0.500000 0.7500\n"
    )
    assert yolo_lines(report(0)) == "\n"
    for count in (0, 1, 500):
        assert Kind.LABELS.pattern.search(yolo_lines(report(count)).encode())
    names = yaml.safe_load(yolo_classes(report(0).categories))["names"]
    assert names == dict(enumerate(NAMES))


def test_images_by_number_with_the_frames_of_videos() -> None:
    listed = coco_images([report(0), report(0, frame=3)], report(0).categories)
    assert [image["id"] for image in listed["images"]] == [1, 2]
    assert listed["images"][1]["frame"] == 3
    assert [each["name"] for each in listed["categories"]] == list(NAMES)


def test_folders_of_classes_lie_in_their_folder() -> None:
    folders = _class_folders(report(0).categories)
    assert len({folder.casefold() for folder in folders}) == len(NAMES)
    for folder in folders:
        assert folder not in ("", ".", "..")
        assert not set(folder) & set('/\\:*?"<>|\n')

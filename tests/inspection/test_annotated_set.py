from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

NAMES = [f"{number}.png" for number in range(6)]


def test_boxes_in_fractions_stop(data: Any, of_kind: Any) -> None:
    boxes = [(image, 1, (0.1, 0.2, 0.3, 0.4)) for image in range(6)]
    report = data.check(data.write("a.json", NAMES, boxes))
    finding = of_kind(report, "normalised")
    assert (finding.rank, finding.count) == ("stops", 6)
    assert finding.text.startswith("train: all of 6 boxes lie within 0..1")
    assert finding.advice.startswith("Multiply x and width by the image's width")
    assert finding.first_places[0] == "0.png (annotation id 1)"
    assert len(finding.first_places) == 5
    assert of_kind(report, "images").text == "train: all of 6 images can be read"


def test_corners_for_sides_stop(data: Any, of_kind: Any) -> None:
    boxes = [(image, 1, (60 + n, 20, 100 + n, 60)) for n in range(2) for image in range(6)]
    report = data.check(data.write("a.json", NAMES, boxes))
    finding = of_kind(report, "corners")
    assert (finding.rank, finding.count) == ("stops", 12)
    assert "as corners [x1, y1, x2, y2]" in finding.text
    assert finding.advice.startswith("Write x2 - x1 and y2 - y1 as the third")
    assert finding.first_places[0] == "0.png (annotation id 1)"


def test_what_extract_refuses_stops(data: Any, of_kind: Any) -> None:
    """Its own words; the images are looked at all the same."""
    path = data.write("a.json", NAMES, [(0, 7, (1, 1, 9, 9)), (77, 1, (1, 1, 9, 9))])
    report = data.check(path)
    finding = of_kind(report, "annotations")
    assert finding.rank == "stops"
    assert "annotation id 2 has image_id 77, which is not in the file" in finding.text
    assert of_kind(report, "images").rank == "fine"


@pytest.mark.parametrize("text", ["{", '{"images": []}', "no"])
def test_files_that_are_no_annotations(data: Any, tmp_path: Path, of_kind: Any, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    report = data.check(tmp_path / "a.json", val=data.write("v.json", NAMES, []))
    assert of_kind(report, "annotations").text.startswith("train: ")
    assert of_kind(report, "images").text == "val: all of 6 images can be read"
    assert report.to_json()["counts"].keys() == {"val"}


def test_names_that_leave_the_folder_are_not_read(data: Any, of_kind: Any) -> None:
    data.draw("../outside.png", 3)
    report = data.check(data.write("a.json", ["../outside.png"], []))
    assert "leaves the folder" in of_kind(report, "annotations").text
    assert not [finding for finding in report.findings if finding.kind == "images"]


def test_other_notes_of_reading_are_shown(data: Any, of_kind: Any) -> None:
    path = data.write("a.json", NAMES, [(0, 1, (1, 1, 9, 9))], classes=((1, "cat"), (2, "cat")))
    finding = of_kind(data.check(path), "note")
    assert "have the same name 'cat'; they stay two classes" in finding.text

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
    assert "file names that leave the folder" in of_kind(report, "annotations").text
    assert not [finding for finding in report.findings if finding.kind == "images"]


def test_other_notes_of_reading_are_shown(data: Any, of_kind: Any) -> None:
    path = data.write("a.json", NAMES, [(0, 1, (1, 1, 9, 9))], classes=((1, "cat"), (2, "cat")))
    finding = of_kind(data.check(path), "note")
    assert "have the same name 'cat'; they stay two classes" in finding.text


def test_names_are_refused_all_at_once(data: Any, of_kind: Any) -> None:
    """Those that leave the folder, with the nearest file, and those that are there twice."""
    names = [*(f"../{n}.png" for n in range(6)), "/etc/passwd", "0.png"]
    text = of_kind(data.check(data.write("a.json", names, [])), "annotations").text
    assert text.startswith(
        f"train: file names that leave the folder {data.images}: 7 ('../0.png', nearest: '0.png'; "
    )
    assert "'../4.png', nearest: '4.png'; and 2 more). Give --images the folder" in text
    twice = [name for name in NAMES for _ in range(2)]
    text = of_kind(data.check(data.write("a.json", twice, [])), "annotations").text
    assert "images holds a `file_name` more than once: 6 of them ('0.png', 2 times; " in text
    assert "; and 1 more). Give each image one entry" in text


def test_classes_are_chosen_as_for_extract(data: Any, of_kind: Any) -> None:
    """A box of another class does not count; a class that is not there is a refusal."""
    boxes = [(image, 1 + image % 2, (10, 10, 40, 30)) for image in range(6)]
    path = data.write("a.json", NAMES, [*boxes, (0, 2, (500, 1, 9, 9))])
    assert of_kind(data.check(path), "outside").count == 1
    report = data.check(path, choose={"classes": "cat", "background": False})
    assert "outside" not in {one.kind for one in report.findings}
    assert [(one.name, one.boxes) for one in report.classes] == [("cat", 3)]
    assert report.counts["train"]["images"] == 3
    text = of_kind(data.check(path, choose={"ignore": "Cat,Dog"}), "annotations").text
    assert "has no class 'Cat'; nearest: 'cat'; it has cat, dog" in text

"""Label files of YOLO: what is taken, mended, and refused with one message."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cachedet.data.annotation_formats import read_dataset, read_sections
from cachedet.data.survey import scan_images
from cachedet.errors import DatasetError
from cachedet.structures import Annotations


def label(root: Path, **files: str) -> Path:
    """Writes over label files of `write_yolo`'s train split."""
    for stem, text in files.items():
        (root / "labels" / "train" / f"{stem}.txt").write_text(text)
    return root / "data.yaml"


@pytest.fixture
def root(exports: Any, tmp_path: Path) -> Path:
    exports.write_yolo(tmp_path / "set", {"train": exports.SHOTS})
    return tmp_path / "set"


def read(root: Path, **options: Any) -> Annotations:
    return read_dataset(annotations=root / "data.yaml", images=root, **options).annotations


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("7 .5 .5 .2 .2\n", "lines of a class number without a name: 1 (train/a.txt line 1: 7). `"),
        ("3 .5 .5 .2 .2\n", "`names` has 3 classes, the last one of number 2: add the names, or"),
        ("-1 .5 .5 .2 .2\n", "a class number without a name: 1 (train/a.txt line 1: -1)"),
        ("1.5 .5 .5 .2 .2\n", "a class number without a name: 1 (train/a.txt line 1: 1.5)"),
        ("0 .5 .5 .2\n", "lines of a wrong number of columns: 1 (train/a.txt line 1: 4). Expe"),
        ("0 .5 .5 .2 .2 .9\n", "columns: 1 (train/a.txt line 1: 6). Expected 5 (class x y width"),
        ("0 .1 .1 .2 .2 .3 .3 .4\n", "columns: 1 (train/a.txt line 1: 8)"),
        ("\n0 .5 x .2 .2\n", "lines that are no numbers: 1 (train/a.txt line 2: 0 .5 x .2 .2). A"),
        ("cat .5 .5 .2 .2\n", "no numbers: 1 (train/a.txt line 1: cat .5 .5 .2 .2)"),
        ("0 nan .5 .2 .2\n", "lines of NaN or Inf: 1 (train/a.txt line 1)"),
        ("0 .5 .5 inf .2\n", "lines of NaN or Inf: 1"),
        ("0 64 48 30 20\n", "lines with values outside 0..1: 1 (train/a.txt line 1: 64). YOLO wri"),
        ("0 .5 -.2 .1 .1\n", "values outside 0..1: 1 (train/a.txt line 1: -0.2)"),
        ("9 .5 .5 .2 .2\n" * 7, "name: 7 (train/a.txt line 1: 9; train/a.txt line 2: 9; train/a.t"),
        ("9 .5 .5 .2 .2\n" * 7, "line 5: 9; and 2 more). "),
    ],
)  # fmt: skip
def test_bad_lines_are_refused_all_at_once(root: Path, lines: str, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        read_sections(label(root, a=lines))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{root}/data.yaml: lines ")


def test_each_kind_has_a_line_of_its_own(root: Path) -> None:
    label(root, a="9 .5 .5 .2 .2\n0 .5\n", b="8 .5 .5 .2 .2\n", c="0 5 5 5 5\n")
    with pytest.raises(DatasetError) as caught:
        read_sections(root / "data.yaml")
    lines = str(caught.value).split("\n")
    assert [re.findall(r"[a-z0-9.]+: (\d) ", line)[-1] for line in lines] == ["2", "1", "1"]


def test_rounding_beyond_the_border_is_taken(root: Path) -> None:
    label(root, b="2 0.5 0.5 1.000001 1\n")
    assert read(root).boxes[read(root).boxes_of(1)][0].tolist() == pytest.approx(
        [0, 0, 96, 128], abs=1e-3
    )


def test_empty_lines_byte_order_marks_and_windows_line_ends(root: Path) -> None:
    label(root, a="\ufeff0 .5 .5 .2 .2\r\n\r\n   \n1 .5 .5 .2 .2")
    annotations = read(root)
    assert annotations.labels[annotations.boxes_of(0)].tolist() == [0, 1]


def test_images_and_label_files_that_have_no_partner(root: Path) -> None:
    """Images alone are background; label files alone are images that are missing."""
    (root / "labels" / "train" / "c.txt").unlink()
    label(root, lost="0 .5 .5 .2 .2\n")
    dataset = read_dataset(annotations=root / "data.yaml", images=root)
    assert (
        "images without a label file: 1 (images/train/c.jpg); they are background"
        in (dataset.notes[0])
    )
    assert "label files without an image: 1 (lost.txt); bring the images" in dataset.notes[1]
    scan = scan_images(dataset, workers=1)
    assert [dataset.annotations.file_names[row] for row, _ in scan.bad] == ["images/train/lost.jpg"]
    assert "No such file" in scan.bad[0][1]


def test_a_name_that_differs_in_case_is_found_by_the_survey(root: Path) -> None:
    (root / "images" / "train" / "a.jpg").rename(root / "images" / "train" / "A.jpg")
    dataset = read_dataset(annotations=root / "data.yaml", images=root)
    scan = scan_images(dataset, workers=1)
    assert [reason for _, reason in scan.bad] == [
        "No such file or directory; nearest: 'images/train/A.jpg'"
    ]


def test_images_without_any_label_file(root: Path) -> None:
    for path in (root / "labels" / "train").iterdir():
        path.rename(path.with_name(f"x_{path.name}"))
    with pytest.raises(DatasetError, match=r"none of 4 images has a label file, and 4 of other na"):
        read_sections(root / "data.yaml")
    for path in (root / "labels" / "train").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=r"has a label file: expected labels/ beside images/"):
        read_sections(root / "data.yaml")


def test_a_damaged_image_is_named_by_the_survey_and_its_boxes_left_out(root: Path) -> None:
    (root / "images" / "train" / "a.jpg").write_bytes(b"no image")
    dataset = read_dataset(annotations=root / "data.yaml", images=root)
    assert "images that no size can be read of: 1 (images/train/a.jpg)" in dataset.notes[0]
    assert dataset.counts["boxes"] == 3
    scan = scan_images(dataset, workers=1)
    assert [row for row, _ in scan.bad] == [0]
    assert scan.bad[0][1].startswith("not an image of a format")


TILTED = "0 .3 .2 .6 .4 .5 .6 .2 .4"  # of 128 x 96: not quite a rectangle
OBB = "1 0.25 0.25 0.375 0.416667 0.25 0.583333 0.125 0.416667\n"  # a square on its corner


def test_rotated_boxes_are_refused_or_their_outer_boxes_taken(root: Path) -> None:
    label(root, a=OBB, b="", c="", d="")
    with pytest.raises(
        DatasetError, match=r"rotated boxes .YOLO-OBB.: 1 .train/a.txt line 1.*oute"
    ):
        read_sections(root / "data.yaml")
    annotations = read(root, rotated="outer")
    assert annotations.boxes[0].tolist() == pytest.approx([16, 24, 48, 56], abs=1e-3)
    assert annotations.masks is None


def test_outlines_of_four_points_are_outlines_where_they_are_no_rectangles(root: Path) -> None:
    """Or where others have more points, or lie upright."""
    upright = "0 .1 .1 .5 .1 .5 .5 .1 .5\n"
    more = "0 .1 .1 .5 .1 .5 .5 .2 .6 .1 .5\n"
    for lines, is_said in ((TILTED, True), (upright, True), (OBB + more, False)):
        label(root, a=lines, b="", c="", d="")
        dataset = read_dataset(annotations=root / "data.yaml", images=root)
        assert dataset.annotations.masks is not None
        said = "all outlines have four points, as rotated boxes (YOLO-OBB) do, and are not rect"
        assert any(said in note for note in dataset.notes) == is_said


def test_keypoints_are_left_out_where_data_yaml_tells_of_them(root: Path) -> None:
    (root / "data.yaml").write_text((root / "data.yaml").read_text() + "kpt_shape: [2, 3]\n")
    label(root, a="0 .5 .5 .2 .2 .1 .1 2 .2 .2 1\n")
    dataset = read_dataset(annotations=root / "data.yaml", images=root)
    assert dataset.counts["boxes"] == 4
    assert "keypoints (`kpt_shape`) are not read: the boxes are" in dataset.notes


def test_what_is_mended_is_named_by_file_and_line(root: Path) -> None:
    label(root, a="0 .5 .5 .2 .2\n0 .5 .5 0 .2\n")
    notes = read_dataset(annotations=root / "data.yaml", images=root).notes
    assert "1 box without area, or of NaN or Inf, dropped (train/a.txt line 2)" in notes


def test_a_label_file_that_cannot_be_read(root: Path) -> None:
    (root / "labels" / "train" / "a.txt").unlink()
    (root / "labels" / "train" / "a.txt").symlink_to("a.txt")
    dataset = read_dataset(annotations=root / "data.yaml", images=root)
    assert "images without a label file: 1" in dataset.notes[0]

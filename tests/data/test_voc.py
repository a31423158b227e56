"""Folders of Pascal VOC's XML: conventions of tools, wrong sizes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachedet.data.annotation_formats import read_dataset, read_sections
from cachedet.data.survey import scan_images
from cachedet.errors import DatasetError


@pytest.fixture
def root(exports: Any, tmp_path: Path) -> Path:
    exports.write_images(tmp_path / "set" / "JPEGImages")
    exports.write_voc(tmp_path / "set" / "Annotations")
    return tmp_path / "set"


def write(root: Path, stem: str, objects: str, *, head: str = "") -> None:
    (root / "Annotations" / f"{stem}.xml").write_text(
        f"<annotation><filename>{stem}.jpg</filename>{head}<size><width>128</width>"
        f"<height>96</height></size>{objects}</annotation>"
    )


def box(xmin: float, ymin: float, xmax: float, ymax: float, *, name: str = "cat") -> str:
    corners = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"


@pytest.mark.parametrize(
    ("database", "expected"),
    [
        ("The VOC2007 Database", [9, 19, 40, 50]),
        ("Unknown", [10, 20, 40, 50]),
        ("roboflow.com", [10, 20, 40, 50]),
    ],
)
def test_where_pixels_are_counted_from(root: Path, database: str, expected: list[float]) -> None:
    """PASCAL's files hold both corner pixels, counted from 1; the other tools the corners."""
    head = f"<source><database>{database}</database></source>"
    write(root, "a", box(10, 20, 40, 50), head=head)
    annotations = read_dataset(annotations=root, images=root / "JPEGImages").annotations
    assert annotations.boxes[0].tolist() == expected


def test_a_file_of_pascal_known_by_its_annotation(root: Path) -> None:
    write(
        root,
        "a",
        box(1, 1, 128, 96),
        head="<source><annotation>PASCAL VOC2010</annotation></source>",
    )
    annotations = read_dataset(annotations=root, images=root / "JPEGImages").annotations
    assert annotations.boxes[0].tolist() == [0, 0, 128, 96]


def test_fractions_of_pixels_and_swapped_corners(root: Path) -> None:
    write(root, "a", box(40.5, 20, 10.25, 50))
    dataset = read_dataset(annotations=root, images=root / "JPEGImages")
    assert dataset.annotations.boxes[0].tolist() == [10.25, 20, 40.5, 50]
    assert "turned round (Annotations/a.xml object 1)" in dataset.notes[0]


@pytest.mark.parametrize("size", ["<width>0</width><height>0</height>", "<width>900</width>", ""])
def test_a_wrong_size_is_that_of_the_image(root: Path, exports: Any, size: str) -> None:
    exports.write_voc(root / "Annotations", size=size or "<width>500</width><height>375</height>")
    dataset = read_dataset(annotations=root, images=root / "JPEGImages")
    assert dataset.annotations.sizes_hw.tolist() == [list(shot.size_hw) for shot in exports.SHOTS]
    assert "<size> corrected by the image file: 4 (a.xml: " in dataset.notes[0]
    assert scan_images(dataset, workers=1).bad == ()


def test_a_size_that_is_turned_stays_for_the_survey(root: Path, exports: Any) -> None:
    """The boxes were drawn on the image lying on its side."""
    exports.write_voc(
        root / "Annotations", exports.SHOTS[:1], size="<width>96</width><height>128</height>"
    )
    dataset = read_dataset(annotations=root, images=root / "JPEGImages")
    scan = scan_images(dataset, workers=1)
    reason = "annotated as 96x128, the upright file is 128x96: width and height swapped"
    assert scan.bad == ((0, reason),)


def test_an_image_that_is_missing_is_named_by_the_survey(root: Path, exports: Any) -> None:
    exports.write_voc(root / "Annotations", size="<width>0</width><height>0</height>")
    (root / "JPEGImages" / "a.jpg").rename(root / "JPEGImages" / "A.jpg")
    dataset = read_dataset(annotations=root, images=root / "JPEGImages")
    assert any("images without a <size> that cannot be read: 1 (a.jpg)" in n for n in dataset.notes)
    scan = scan_images(dataset, workers=1)
    assert scan.bad == ((0, "No such file or directory; nearest: 'A.jpg'"),)


@pytest.mark.parametrize("name", ["a", "a.jpg", "C:\\photos\\a.jpg", "folder/a.jpg", "", "old.png"])
def test_the_image_is_found_by_what_the_file_says_or_its_own_name(root: Path, name: str) -> None:
    text = (root / "Annotations" / "a.xml").read_text().replace(">a.jpg<", f">{name}<")
    (root / "Annotations" / "a.xml").write_text(text)
    dataset = read_dataset(annotations=root, images=root / "JPEGImages")
    assert dataset.annotations.file_names[0] == "a.jpg"
    dataset = read_dataset(annotations=root, images=root)
    assert dataset.annotations.file_names[0] == "JPEGImages/a.jpg"


def test_names_that_leave_the_folder_are_refused(root: Path) -> None:
    text = (root / "Annotations" / "a.xml").read_text().replace(">a.jpg<", ">../../secret.jpg<")
    (root / "Annotations" / "a.xml").rename(root / "Annotations" / "q.xml")
    (root / "Annotations" / "q.xml").write_text(text)
    with pytest.raises(DatasetError, match=r"leave the folder .*: 1 .'../../secret.jpg'"):
        read_dataset(annotations=root, images=root / "JPEGImages")


def test_difficult_objects_are_crowd_boxes(root: Path) -> None:
    write(root, "a", box(1, 2, 30, 40).replace("</name>", "</name><difficult>1</difficult>"))
    dataset = read_dataset(annotations=root, images=root / "JPEGImages")
    assert dataset.annotations.crowd.tolist() == [True, False, False, False]
    assert dataset.notes[0] == "`difficult` objects taken as crowd boxes: 1"


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ("<object><name>cat</name></object>", "objects without a <bndbox>: 1 (Annotations/a.xml"),
        (box(1, 2, 3, 4, name=""), "objects without a <name>: 1 (Annotations/a.xml object 1)."),
        (box(1, 2, 3, 4).replace(">3<", ">x<"), "boxes of which a corner is no number: 1 (Annotat"),
        (box(1, 2, 3, 4).replace(">3<", ">nan<"), "a corner is no number: 1"),
        (box(1, 2, 3, 4).replace("<xmax>3</xmax>", ""), "a corner is no number: 1"),
        ("<object><name>cat</name></object>" * 7, "<bndbox>: 7 (Annotations/a.xml object 1; Annot"),
        ("<object><name>cat</name></object>" * 7, "object 5; and 2 more). Draw the boxes"),
    ],
)  # fmt: skip
def test_bad_objects_are_refused_all_at_once(root: Path, objects: str, message: str) -> None:
    write(root, "a", objects)
    with pytest.raises(DatasetError) as caught:
        read_sections(root)
    assert message in str(caught.value)


def test_rotated_boxes_are_refused_or_their_outer_boxes_taken(root: Path) -> None:
    """As roLabelImg writes them."""
    tilted = "<cx>50</cx><cy>40</cy><w>20</w><h>20</h><angle>0.785398163</angle>"
    write(root, "a", f"<object><name>cat</name><robndbox>{tilted}</robndbox></object>")
    with pytest.raises(DatasetError, match=r"rotated boxes .<robndbox>.: 1 .*--rotated outer"):
        read_sections(root)
    options = {"annotations": root, "images": root / "JPEGImages"}
    dataset = read_dataset(**options, rotated="outer")
    half = 10 * np.sqrt(2)
    expected = [50 - half, 40 - half, 50 + half, 40 + half]
    assert dataset.annotations.boxes[0].tolist() == pytest.approx(expected)
    assert "rotated boxes taken as the box around each: 1" in dataset.notes
    write(root, "a", "<object><name>cat</name><robndbox><cx>5</cx></robndbox></object>")
    with pytest.raises(DatasetError, match="rotated boxes without their numbers: 1"):
        read_dataset(**options, rotated="outer")


def classes_of(root: Path) -> tuple[str, ...]:
    return read_dataset(annotations=root, images=root / "JPEGImages").annotations.categories.names


def test_classes_are_those_of_all_splits_or_of_the_file(root: Path, exports: Any) -> None:
    assert classes_of(root) == ("bird", "cat", "dog")
    (root / "classes.txt").write_text("dog\ncat\nbird\nfish\n")
    assert classes_of(root) == ("dog", "cat", "bird", "fish")
    (root / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(
        DatasetError, match=r"a class that the file of classes lacks: 1 .*: bird.*Add"
    ):
        read_sections(root)
    (root / "classes.txt").write_text("dog\ncat\ndog\n")
    with pytest.raises(DatasetError, match=r"classes.txt: names of more than one class: 1 .'dog'"):
        read_sections(root)


def test_lists_of_splits(root: Path) -> None:
    with pytest.raises(DatasetError, match="no split 'train': it has none; leave --split out"):
        read_sections(Path(f"{root}:train"))
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nnone\n")
    (lists / "val.txt").write_text("b\n")
    with pytest.raises(DatasetError, match=r"several splits .train, val.: choose one with --split"):
        read_sections(root)
    assert len(read_sections(Path(f"{root}:val")).content["images"]) == 1
    with pytest.raises(
        DatasetError, match=r"XML files of the split that are not there: 1 .*none.xml"
    ):
        read_sections(Path(f"{root}:train"))


def test_other_xml_among_them(root: Path) -> None:
    (root / "Annotations" / "z.xml").write_text("<kml/>")
    with pytest.raises(
        DatasetError, match=r"XML files that are not VOC: 1 .Annotations/z.xml: <kml"
    ):
        read_sections(root)


def test_images_without_an_xml_file_are_named(root: Path) -> None:
    (root / "Annotations" / "c.xml").unlink()
    dataset = read_dataset(annotations=root, images=root / "JPEGImages")
    assert dataset.counts["images"] == 3
    assert "images without an XML file: 1 (c.jpg); they are no part of the data" in dataset.notes[0]


def test_the_image_beside_its_file_comes_first(exports: Any, tmp_path: Path) -> None:
    exports.write_voc(exports.write_images(tmp_path / "day"))
    exports.write_images(tmp_path)
    annotations = read_dataset(annotations=tmp_path, images=tmp_path).annotations
    assert annotations.file_names == ("day/a.jpg", "day/b.png", "day/c.jpg", "day/d.jpg")


@pytest.mark.parametrize(
    ("said", "there"), [("a", "a.JPG"), ("a.v1", "a.v1.jpg"), ("a.v1", "a.v1.JPG"), ("q", "a.JPG")]
)
def test_the_suffix_of_the_image_is_found(root: Path, said: str, there: str) -> None:
    text = (root / "Annotations" / "a.xml").read_text().replace(">a.jpg<", f">{said}<")
    (root / "Annotations" / "a.xml").write_text(text)
    (root / "JPEGImages" / "a.jpg").rename(root / "JPEGImages" / there)
    for images in (root / "JPEGImages", root):
        dataset = read_dataset(annotations=root, images=images)
        assert dataset.annotations.file_names[0].endswith(there)


def test_images_that_were_made_larger_are_refused(root: Path, exports: Any) -> None:
    shot = exports.Shot("a.jpg", (384, 512))
    exports.write_images(root / "JPEGImages", [shot])
    message = (
        r"made larger after their boxes were drawn: 1 .a.xml: 128x96, the image 512x384.*scale"
    )
    with pytest.raises(DatasetError, match=message):
        read_sections(root)
    write(root, "a", "")
    assert "<size> corrected by the image file: 1 (a.xml: 128x96" in read_sections(root).notes[0]
    write(root, "a", box(10, 20, 300, 50))
    assert "<size> corrected by the image file: 1 (a.xml: 128x96" in read_sections(root).notes[0]


def test_splits_with_an_underscore_are_splits(root: Path) -> None:
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, text in {
        "part_1": "a\n",
        "part_2": "b\nc\n",
        "cat_val": "a  1\nb -1\n",
        "dog_part_1": "a\n",
        "part_1_extra": "d\n",
    }.items():
        (lists / f"{name}.txt").write_text(text)
    with pytest.raises(DatasetError, match=r"several splits .dog_part_1, part_1, part_1_extra, pa"):
        read_sections(root)
    assert len(read_sections(Path(f"{root}:part_2")).content["images"]) == 2


@pytest.mark.parametrize("line", ["my photo", '"my photo"', "my photo 1", "'my photo' -1"])
def test_names_with_spaces_in_a_list(root: Path, line: str) -> None:
    (root / "Annotations" / "a.xml").rename(root / "Annotations" / "my photo.xml")
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text(f"{line}\n")
    assert len(read_sections(root).content["annotations"]) == 2
    (root / "Annotations" / "my photo.xml").rename(root / "Annotations" / "my photo 1.xml")
    (lists / "train.txt").write_text("my photo 1\n")
    assert len(read_sections(root).content["annotations"]) == 2


def test_the_first_xml_may_be_of_another_tool(root: Path) -> None:
    (root / "Annotations" / "_.xml").write_text("<kml/>")
    with pytest.raises(DatasetError, match=r"XML files that are not VOC: 1 .*Move other XML"):
        read_sections(root)


def test_unreadable_files_are_named_all_at_once(root: Path) -> None:
    """The good ones among them do not hide the others, nor the other way round."""
    folder = root / "Annotations"
    (folder / "a.xml").write_text("<annotation><object>")
    (folder / "b.xml").write_bytes(b"<annotation>\xff</annotation>")
    for number in range(6):
        (folder / f"x{number}.xml").write_text("")
    write(root, "d", "<object><name>cat</name></object>")
    with pytest.raises(DatasetError) as caught:
        read_sections(root)
    first, second = str(caught.value).split("\n")
    assert (
        "XML files that cannot be used: 8 (Annotations/a.xml is not XML: no element found" in first
    )
    assert "; Annotations/x2.xml is not XML:" in first
    assert "; and 3 more). Repair or remove them" in first
    assert second.startswith("objects without a <bndbox>: 1 (Annotations/d.xml object 1)")


def test_two_files_of_one_image_are_named(root: Path) -> None:
    (root / "Annotations" / "z.xml").write_text((root / "Annotations" / "a.xml").read_text())
    message = (
        r"images that two XML files describe: 1 \(a.jpg: Annotations/a.xml and Annotations/z.xml\)."
        " Remove one of the two, or correct its <filename>"
    )
    with pytest.raises(DatasetError, match=message):
        read_sections(root)


@pytest.mark.parametrize(("text", "crowds"), [("1", 1), ("true", 1), ("True", 1), ("false", 0)])
def test_difficult_in_words(root: Path, text: str, crowds: int) -> None:
    write(root, "a", box(1, 2, 30, 40).replace("</name>", f"</name><difficult>{text}</difficult>"))
    dataset = read_dataset(annotations=root, images=root / "JPEGImages")
    assert dataset.counts["crowd boxes"] == crowds


def test_a_bomb_among_the_first_files_is_named_as_one_files_fault(root: Path) -> None:
    """The folder is one of VOC all the same; a folder of nothing else says what it met."""
    bomb = '<!DOCTYPE a [<!ENTITY x "lol">]><annotation>&x;</annotation>'
    (root / "Annotations" / "0.xml").write_text(bomb)
    with pytest.raises(DatasetError) as caught:
        read_sections(root)
    text = str(caught.value)
    assert "XML files that cannot be used: 1 (Annotations/0.xml declares entities" in text
    assert text.endswith("Repair or remove them")
    alone = root / "alone"
    alone.mkdir()
    (alone / "0.xml").write_text(bomb)
    with pytest.raises(DatasetError, match="0.xml declares entities"):
        read_sections(alone)

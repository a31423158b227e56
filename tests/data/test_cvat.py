"""CVAT for images: its shapes, its splits, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachedet.data.annotation_formats import read_dataset, read_sections
from cachedet.data.masks import decode_mask
from cachedet.data.survey import scan_images
from cachedet.errors import DatasetError


@pytest.fixture
def images(exports: Any, tmp_path: Path) -> Path:
    folder: Path = exports.write_images(tmp_path / "images")
    return folder


def shaped(exports: Any, root: Path, shapes: str) -> Path:
    """The shapes are those of one image of 128 x 96."""
    path: Path = exports.write_cvat(root / "a.xml", exports.SHOTS[2:3], shapes=shapes)
    return path


BOX = '<box label="cat" xtl="{0}" ytl="{1}" xbr="{2}" ybr="{3}"{4}/>'
HUGE = '<mask label="cat" rle="{}" left="0" top="0" width="3" height="2"/>'


def test_masks_are_rows_of_a_window(exports: Any, images: Path, tmp_path: Path) -> None:
    mask = '<mask label="dog" rle="1, 2, 3" left="10" top="20" width="3" height="2"></mask>'
    path = shaped(exports, tmp_path, mask)
    annotations = read_dataset(annotations=path, images=images).annotations
    assert annotations.boxes.tolist() == [[10, 20, 13, 22]]
    assert annotations.areas.tolist() == [2]
    assert annotations.masks is not None
    bitmap = decode_mask(annotations.masks[0], (96, 128))
    assert np.argwhere(bitmap).tolist() == [[20, 11], [20, 12]]


def test_rotated_boxes_are_refused_or_their_outer_boxes_taken(
    exports: Any, images: Path, tmp_path: Path
) -> None:
    shapes = BOX.format(20, 30, 60, 50, ' rotation="90.00"') + BOX.format(1, 2, 3, 4, "")
    path = shaped(exports, tmp_path, shapes)
    with pytest.raises(
        DatasetError, match=r"rotated boxes: 1 .c.jpg box 1: 90 degrees.*outer .of ext"
    ):
        read_sections(path)
    dataset = read_dataset(annotations=path, images=images, rotated="outer")
    expected = np.array([[30, 20, 50, 60], [1, 2, 3, 4]])
    assert np.abs(dataset.annotations.boxes - expected).max() < 1e-9
    assert "rotated boxes taken as the box around each: 1" in dataset.notes
    straight = shaped(exports, tmp_path, BOX.format(20, 30, 60, 50, ' rotation="0.0"'))
    assert read_dataset(annotations=straight, images=images).counts["boxes"] == 1


def test_shapes_without_a_box_are_left_out_and_counted(
    exports: Any, images: Path, tmp_path: Path
) -> None:
    shapes = '<points label="cat" points="1,2"/><polyline label="cat" points="1,2;3,4"/><tag/>' * 2
    dataset = read_dataset(annotations=shaped(exports, tmp_path, shapes), images=images)
    assert dataset.notes == ("shapes that have no box left out: 2 points, 2 polyline",)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (BOX.format(1, "x", 3, 4, ""), "whose numbers cannot be read: 1 (c.jpg box 1). A box"),
        (BOX.format(1, "nan", 3, 4, ""), "numbers cannot be read: 1"),
        (BOX.format(1, "inf", 3, 4, "") * 7, "cannot be read: 7 (c.jpg box 1; c.jpg box 2;"),
        (BOX.format(1, 2, 3, 4, "").replace("cat", "cow"), "label that <meta> lacks: 1 (c.jpg"),
        ('<polygon label="cat" points="1,2;3,4"/>', "cannot be read: 1 (c.jpg polygon 1)"),
        ('<polygon label="cat" points="1,2;3;5,6"/>', "cannot be read: 1 (c.jpg polygon 1)"),
        ('<mask label="cat" rle="1,2" left="0" top="0" width="3" height="2"/>', "c.jpg mask 1"),
        ('<mask label="cat" rle="6" left="127" top="0" width="3" height="2"/>', "c.jpg mask 1"),
        ('<mask label="cat" rle="-1,7" left="0" top="0" width="3" height="2"/>', "c.jpg mask 1"),
        (HUGE.format(f"{2**63 - 1},{2**63 - 1},8"), "c.jpg mask 1"),
        (HUGE.format(2**70), "c.jpg mask 1"),
        ('<mask label="cat" rle="" left="0" top="0" width="3" height="2"/>', "c.jpg mask 1"),
    ],
)  # fmt: skip
def test_bad_shapes_are_refused_all_at_once(
    exports: Any, tmp_path: Path, shapes: str, message: str
) -> None:
    with pytest.raises(DatasetError) as caught:
        read_sections(shaped(exports, tmp_path, shapes))
    assert message in str(caught.value)


def test_a_video_is_refused_with_the_way_out(tmp_path: Path) -> None:
    track = '<track id="0" label="cat"><box frame="0" xtl="1" ytl="1" xbr="2" ybr="2"/></track>'
    (tmp_path / "a.xml").write_text(f"<annotations><version>1.1</version>{track}</annotations>")
    with pytest.raises(
        DatasetError, match=r'is CVAT for video .1 tracks.: export.*"CVAT for images'
    ):
        read_sections(tmp_path / "a.xml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("<image", "<picture"), "expected <image> elements of CVAT for images, found none"),
        (('width="128"', 'width="0"'), "images without a name or size: 2 (id 0: a.jpg 0x96; id 2"),
        (('height="96"', 'height="9999999999"'), "images without a name or size: 2"),
        (('name="a.jpg"', ""), "images without a name or size: 1 (id 0: "),
        (("<name>dog<", "<name>cat<"), "names of more than one class: 1 ('cat' is [1, 2])"),
        (("</annotations>", ""), "is not XML: no element found"),
    ],
)
def test_a_file_that_is_none(
    exports: Any, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    text = (
        exports.cvat_xml().replace("</image", "</picture")
        if "<p" in change[1]
        else (exports.cvat_xml())
    )
    (tmp_path / "a.xml").write_text(text.replace(*change))
    with pytest.raises(DatasetError) as caught:
        read_sections(tmp_path / "a.xml")
    assert message in str(caught.value)


def test_subsets_are_splits(exports: Any, tmp_path: Path) -> None:
    """And folders below images/, as CVAT exports a project with its images."""
    both = [exports.cvat_xml([shot], subset=name) for shot, name in zip(
        exports.SHOTS, ("train", "val"), strict=False)]  # fmt: skip
    images = [text[text.index("<image") : text.index("</annotations>")] for text in both]
    (tmp_path / "annotations.xml").write_text(both[0].replace(images[0], "".join(images)))
    exports.write_images(tmp_path / "images" / "train", exports.SHOTS[:1])
    with pytest.raises(DatasetError, match=r"several splits .train, val.: choose"):
        read_sections(tmp_path / "annotations.xml")
    dataset = read_dataset(annotations=Path(f"{tmp_path}:train"), images=tmp_path)
    assert dataset.annotations.file_names == ("images/train/a.jpg",)
    assert scan_images(dataset, workers=1).bad == ()


def test_labels_without_meta_are_those_in_use(exports: Any, tmp_path: Path) -> None:
    text = exports.cvat_xml()
    text = text[: text.index("<meta>")] + text[text.index("</meta>") + 7 :]
    (tmp_path / "a.xml").write_text(text)
    names = [one["name"] for one in read_sections(tmp_path / "a.xml").content["categories"]]
    assert names == ["bird", "cat", "dog"]
    empty = '<annotations><image id="0" name="a.jpg" width="4" height="4"/></annotations>'
    (tmp_path / "a.xml").write_text(empty)
    with pytest.raises(DatasetError, match="has no labels: expected <meta> with <labels>"):
        read_sections(tmp_path / "a.xml")


def test_a_name_that_differs_in_case_is_found_by_the_survey(
    exports: Any, images: Path, tmp_path: Path
) -> None:
    (images / "a.jpg").rename(images / "A.JPG")
    dataset = read_dataset(annotations=exports.write_cvat(tmp_path / "a.xml"), images=images)
    scan = scan_images(dataset, workers=1)
    assert scan.bad == ((0, "No such file or directory; nearest: 'A.JPG'"),)


def test_points_of_skeletons_are_no_classes(exports: Any, tmp_path: Path) -> None:
    point = "<label><name>1</name><type>points</type><parent>{}</parent></label>"
    text = exports.cvat_xml().replace("</labels>", f"{point.format('cat')}{point.format('dog')}</l")
    text = text.replace("</l</task>", "</labels></task>")
    (tmp_path / "a.xml").write_text(text)
    names = [one["name"] for one in read_sections(tmp_path / "a.xml").content["categories"]]
    assert names == list(exports.NAMES)


def test_frames_of_a_video_have_no_suffix(exports: Any, images: Path, tmp_path: Path) -> None:
    (images / "a.jpg").rename(images / "frame_000000.PNG")
    (tmp_path / "a.xml").write_text(exports.cvat_xml().replace('"a.jpg"', '"frame_000000"'))
    for folder, name in ((images, "frame"), (tmp_path, "images/frame")):
        dataset = read_dataset(annotations=tmp_path / "a.xml", images=folder)
        assert f"{name}_000000.PNG" in dataset.annotations.file_names
        assert scan_images(dataset, workers=1).bad == ()


def test_images_without_a_subset_are_of_the_default_one(exports: Any, tmp_path: Path) -> None:
    text = exports.cvat_xml().replace('name="a.jpg"', 'name="a.jpg" subset="train"')
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(DatasetError, match=r"several splits .default, train.: choose"):
        read_sections(tmp_path / "a.xml")
    assert len(read_sections(Path(f"{tmp_path}/a.xml:default")).content["images"]) == 3


def test_the_xml_file_of_a_folder_is_named(exports: Any, tmp_path: Path) -> None:
    images = exports.write_images(tmp_path / "images")
    exports.write_cvat(tmp_path / "annotations.xml", (*exports.SHOTS, exports.SHOTS[0]))
    message = (
        r"annotations.xml: images holds a `file_name` more than once: 1 of them .'a.jpg', 2 times"
    )
    with pytest.raises(DatasetError, match=message):
        read_dataset(annotations=tmp_path, images=images)

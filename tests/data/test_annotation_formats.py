"""What is recognised, and that one data set is the same in every format."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachedet.data.annotation_formats import (
    is_annotations,
    read_dataset,
    read_sections,
    with_split,
)
from cachedet.data.survey import scan_images
from cachedet.errors import DatasetError
from cachedet.structures import Annotations

Write = Callable[[Any, Path], tuple[Path, Path]]  # exports, folder -> annotations, images


def coco(exports: Any, root: Path) -> tuple[Path, Path]:
    return exports.write_coco(root / "a.json"), exports.write_images(root / "images")


def roboflow_coco(exports: Any, root: Path) -> tuple[Path, Path]:
    exports.write_roboflow_coco(root, "train")
    exports.write_roboflow_coco(root, "valid", exports.SHOTS[:1])
    return Path(f"{root}:train"), root


def yolo(exports: Any, root: Path) -> tuple[Path, Path]:
    path = exports.write_yolo(root, {"train": exports.SHOTS, "val": exports.SHOTS[:1]})
    return with_split(path, "train"), root / "images" / "train"


def roboflow_yolo(exports: Any, root: Path) -> tuple[Path, Path]:
    path = exports.write_roboflow_yolo(root, {"train": exports.SHOTS[:1], "valid": exports.SHOTS})
    return with_split(path, "valid"), root


def label_studio_yolo(exports: Any, root: Path) -> tuple[Path, Path]:
    exports.write_label_studio_yolo(root)
    return root, exports.write_images(root / "images")


def cvat_yolo(exports: Any, root: Path) -> tuple[Path, Path]:
    """YOLO 1.1: obj.names, and images beside their label files."""
    exports.write_labels(root / "obj_train_data")
    exports.write_images(root / "obj_train_data")
    (root / "obj.names").write_text("\n".join(exports.NAMES) + "\n")
    return root, root


def voc(exports: Any, root: Path) -> tuple[Path, Path]:
    """PASCAL's own: pixels count from 1."""
    exports.write_voc(root / "Annotations", shift=1, database="The VOC2007 Database")
    (root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:1,0,0::\ndog:::\nbird:::\n"
    )
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f"{shot.stem}\n" for shot in exports.SHOTS))
    (lists / "val.txt").write_text("a\n")
    (lists / "cat_train.txt").write_text("a 1\nb -1\n")
    return Path(f"{root}:train"), exports.write_images(root / "JPEGImages")


def roboflow_voc(exports: Any, root: Path) -> tuple[Path, Path]:
    """Images and XML side by side in the folder of each split."""
    exports.write_voc(exports.write_images(root / "train"), database="roboflow.com")
    exports.write_voc(root / "valid", exports.SHOTS[:1])
    (root / "classes.txt").write_text("cat\ndog\nbird\n")
    return Path(f"{root}:train"), root


def cvat(exports: Any, root: Path) -> tuple[Path, Path]:
    return exports.write_cvat(root / "annotations.xml"), exports.write_images(root / "images")


EXPORTS: tuple[Write, ...] = (
    coco, roboflow_coco, yolo, roboflow_yolo, label_studio_yolo, cvat_yolo, voc, roboflow_voc, cvat,
)  # fmt: skip


def same(one: Annotations, other: Annotations) -> None:
    """The same but for the folders of the names, and rounding."""
    names = [[Path(name).name for name in each.file_names] for each in (one, other)]
    assert names[0] == names[1]
    assert one.categories == other.categories
    for name in ("image_ids", "sizes_hw", "offsets", "labels", "crowd"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist(), name
    assert np.abs(one.boxes - other.boxes).max() < 0.01  # 6 decimals of 128 pixels


@pytest.mark.parametrize("write", EXPORTS, ids=lambda write: write.__name__)
def test_one_data_set_is_the_same_in_every_format(
    exports: Any, tmp_path: Path, write: Write
) -> None:
    annotations, images = write(exports, tmp_path / "set")
    dataset = read_dataset(annotations=annotations, images=images)
    expected, folder = coco(exports, tmp_path / "coco")
    same(dataset.annotations, read_dataset(annotations=expected, images=folder).annotations)
    assert scan_images(dataset, workers=1).bad == ()
    assert is_annotations(annotations)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (coco, r"a\.json: COCO JSON \(images: 4, boxes: 5, classes: 3\)"),
        (roboflow_coco, r"_annotations.coco.json: COCO JSON, split train \(images: 4"),
        (yolo, r"data\.yaml: YOLO data set, split train, images in .*images/train \(images: 4"),
        (voc, r"set: Pascal VOC, a folder of XML, split train \(images: 4, boxes: 5"),
        (cvat, r"annotations.xml: CVAT for images \(images: 4, boxes: 5, classes: 3\)"),
    ],
)
def test_the_format_is_said_in_one_line(
    exports: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, write: Write, said: str
) -> None:
    caplog.set_level(logging.INFO, logger="cachedet")
    annotations, images = write(exports, tmp_path / "set")
    read_dataset(annotations=annotations, images=images)
    assert len(caplog.messages) == 1
    assert re.search(said, caplog.messages[0]), caplog.messages


def test_outlines_become_masks_in_every_format(exports: Any, tmp_path: Path) -> None:
    shots = exports.OUTLINED
    images = exports.write_images(tmp_path / "images", shots)
    sources = [
        exports.write_coco(tmp_path / "a.json", shots),
        exports.write_yolo(tmp_path / "yolo", {"train": shots}),
        exports.write_cvat(tmp_path / "a.xml", shots),
    ]
    folders = [images, tmp_path / "yolo", images]
    read = [
        read_dataset(annotations=source, images=folder).annotations
        for source, folder in zip(sources, folders, strict=True)
    ]
    for other in read[1:]:
        same(read[0], other)
        assert read[0].masks is not None
        assert other.masks is not None
        assert [read[0].masks[box] for box in range(3)] == [other.masks[box] for box in range(3)]
    assert read[1].areas == pytest.approx([970.0, 799.5, 8160.0], abs=0.05)


def test_formats_that_round_stay_within_half_a_pixel(exports: Any, tmp_path: Path) -> None:
    """VOC writes whole pixels, CVAT two decimals, YOLO six of a fraction."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (40, 2)), rng.uniform(2, 60, (40, 2))
    boxes = tuple((n % 3, *xy, *wh) for n, (xy, wh) in enumerate(zip(*corners, strict=True)))
    shots = (exports.Shot("a.jpg", (128, 120), boxes),)
    images = exports.write_images(tmp_path / "images", shots)
    expected = exports.write_coco(tmp_path / "a.json", shots)
    voc, pascal = tmp_path / "voc", tmp_path / "pascal"
    sources = {
        exports.write_voc(voc, shots): 0.5,
        exports.write_voc(pascal, shots, shift=1, database="The VOC2012 Database"): 0.5,
        exports.write_cvat(tmp_path / "a.xml", shots): 0.006,
    }
    exports.write_labels(tmp_path / "images", shots)
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat, dog, bird]\n")
    sources[tmp_path / "data.yaml"] = 1e-3
    truth = read_dataset(annotations=expected, images=images).annotations
    names = np.array(truth.categories.names)
    for source, most in sources.items():
        found = read_dataset(annotations=source, images=images).annotations
        assert (np.array(found.categories.names)[found.labels] == names[truth.labels]).all()
        assert np.abs(found.boxes - truth.boxes).max() <= most, source


def test_the_order_of_files_means_nothing(exports: Any, tmp_path: Path) -> None:
    """Digests of stores are over what was understood."""
    first = exports.write_yolo(tmp_path / "one", {"train": exports.SHOTS})
    second = exports.write_yolo(tmp_path / "two", {"train": exports.SHOTS[::-1]})
    one, two = (
        read_dataset(annotations=path, images=path.parent).annotations for path in (first, second)
    )
    assert one.file_names == two.file_names
    assert one.boxes.tobytes() == two.boxes.tobytes()
    assert one.image_ids.tolist() == [1, 2, 3, 4]


def test_roboflows_placeholder_is_left_out_where_it_is_one(exports: Any, tmp_path: Path) -> None:
    annotations, images = roboflow_coco(exports, tmp_path / "set")
    dataset = read_dataset(annotations=annotations, images=images)
    assert "category 0, 'animals', is Roboflow's placeholder without objects" in dataset.notes[0]
    path = tmp_path / "set" / "train" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(content))
    again = read_dataset(annotations=annotations, images=images).annotations
    assert again.categories.ids == (0, 1, 2, 3)


def test_label_studios_prefixes_are_taken_off_where_files_lack_them(
    exports: Any, tmp_path: Path
) -> None:
    """In COCO, YOLO, VOC and CVAT; files that have them stay as they are."""
    shots = exports.uploaded(exports.SHOTS)
    images = exports.write_images(tmp_path / "images")
    (tmp_path / "classes.txt").write_text("cat\ndog\nbird\n")
    sources = [
        exports.write_coco(tmp_path / "a.json", shots),
        exports.write_voc(tmp_path / "voc", shots),
        exports.write_cvat(tmp_path / "a.xml", shots),
        exports.write_label_studio_yolo(tmp_path / "yolo"),
    ]
    for source in sources:
        found = read_dataset(annotations=source, images=images).annotations
        assert found.file_names == ("a.jpg", "b.png", "c.jpg", "d.jpg"), source
    notes = read_dataset(annotations=sources[0], images=images).notes
    assert "images found by another form of their names: 4 (3f2a91bc-a.jpg is a.jpg;" in notes[0]
    prefixed = exports.write_images(tmp_path / "prefixed", shots)
    again = read_dataset(annotations=sources[0], images=prefixed)
    assert again.annotations.file_names[0] == "3f2a91bc-a.jpg"
    assert again.notes == ()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xml", "<annotation/>", "one XML file of Pascal VOC: give the folder of them all"),
        ("a.xml", "<kml></kml>", "is XML of <kml>. Expected COCO or LVIS JSON, the data.yaml"),
        ("a.csv", "ImageID,Source,LabelName\n", "CSV or another table. --annotations takes COCO"),
        ("a.csv", "ImageID,Source,LabelName\n", "`datumaro` or `labelformat` can read"),
        ("a.zip", "PK\x03\x04...", "compressed; unpack it first"),
        ("a.txt", "0 0.5 0.5 0.2 0.2\n", "it is one label file of YOLO; name the folder"),
        ("a.html", "<!DOCTYPE html><html></html>", "a web page: was a download refused?"),
        ("d/notes.md", "# hello", "a folder without annotations that are known; it holds notes.md"),
    ],
)
def test_what_is_not_known_is_refused_with_advice(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / name).write_text(content)
    source = tmp_path / "d" if name.startswith("d/") else tmp_path / name
    with pytest.raises(DatasetError) as caught:
        read_sections(source)
    assert message in str(caught.value)
    assert is_annotations(source) == (not name.startswith("d/"))


def test_a_split_is_named_where_there_are_several(exports: Any, tmp_path: Path) -> None:
    shots = exports.SHOTS
    path = exports.write_yolo(tmp_path / "yolo", {"train": shots, "val": shots[:2]})
    with pytest.raises(DatasetError, match=r"several splits \(train, val\): choose one with --spl"):
        read_sections(path)
    with pytest.raises(DatasetError, match=r"no split 'test': it has train, val"):
        read_sections(with_split(path, "test"))
    assert len(read_sections(with_split(path, "valid")).content["images"]) == 2  # by either name
    one = exports.write_yolo(tmp_path / "one", {"train": shots})
    assert read_sections(one).split == "train"
    with pytest.raises(DatasetError, match=r"no split 'train': it has none; leave --split out"):
        read_sections(with_split(exports.write_coco(tmp_path / "a.json"), "train"))
    with pytest.raises(DatasetError, match=r"there is no .*none.yaml .of which train is a split"):
        read_sections(tmp_path / "none.yaml:train")


@pytest.mark.parametrize(
    "name",
    ["images/3f2a91bc-a.jpg", "images\\3f2a91bc-a.jpg", "/data/upload/1/3f2a91bc-a.jpg",
     "../../label-studio/media/upload/1/3f2a91bc-a.jpg", ".\\a.jpg"],
)  # fmt: skip
def test_own_images_beside_names_of_a_server(exports: Any, tmp_path: Path, name: str) -> None:
    content = exports.coco_of(exports.SHOTS[:1])
    content["images"][0]["file_name"] = name
    (tmp_path / "a.json").write_text(json.dumps(content))
    images = exports.write_images(tmp_path / "own")
    found = read_dataset(annotations=tmp_path / "a.json", images=images)
    assert found.annotations.file_names == ("a.jpg",)
    assert "images found by another form of their names: 1" in found.notes[0]


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no file .*nope; expected COCO or LVIS JSON,"):
        read_sections(tmp_path / "nope")

"""What a person is told who gives a part of a data set, or what is none; and that it works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cachedet.data.annotation_formats import read_dataset, read_sections
from cachedet.errors import DatasetError

CLASSES = r"a classes\.txt \(one name a line, in the order of their numbers\)"


def refusal(source: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        read_sections(source)
    return str(caught.value)


@pytest.fixture
def yolo(exports: Any, tmp_path: Path) -> Path:
    """images/ and labels/, and nothing that names the classes."""
    exports.write_labels(tmp_path / "labels")
    exports.write_images(tmp_path / "images")
    return tmp_path


def name_classes(exports: Any, folder: Path) -> None:
    (folder / "classes.txt").write_text("\n".join(exports.NAMES) + "\n")


@pytest.mark.parametrize("part", ["", "labels", "labels/a.txt"])
def test_label_files_without_names_of_classes(exports: Any, yolo: Path, part: str) -> None:
    message = refusal(yolo / part)
    advice = f"of YOLO; put {CLASSES} into {yolo}, and give that folder"
    assert re.search(f"label files? {advice}", message), message
    name_classes(exports, yolo)
    assert len(read_dataset(annotations=yolo, images=yolo / "images").annotations) > 0


def test_label_files_beside_their_images(exports: Any, tmp_path: Path) -> None:
    exports.write_labels(tmp_path / "all")
    exports.write_images(tmp_path / "all")
    advice = f"put {CLASSES} into {tmp_path / 'all'}, and give that folder"
    assert re.search(advice, refusal(tmp_path / "all"))
    name_classes(exports, tmp_path / "all")
    assert len(read_dataset(annotations=tmp_path / "all", images=tmp_path / "all").annotations) > 0


def test_label_files_in_a_folder_of_another_name(exports: Any, tmp_path: Path) -> None:
    images = exports.write_images(tmp_path / "photos")
    exports.write_labels(tmp_path / "texts")
    assert re.search(f"name the folder texts `labels`, put {CLASSES}", refusal(tmp_path / "texts"))
    name_classes(exports, tmp_path / "texts")
    message = refusal(tmp_path / "texts")
    assert "`labels`, move its classes.txt beside it, and give the folder of both" in message
    (tmp_path / "texts").rename(tmp_path / "labels")
    (tmp_path / "labels" / "classes.txt").rename(tmp_path / "classes.txt")
    assert len(read_dataset(annotations=tmp_path, images=images).annotations) > 0


def test_a_part_of_a_whole_data_set(exports: Any, tmp_path: Path) -> None:
    path = exports.write_yolo(tmp_path, {"train": exports.SHOTS})
    for part in ("labels", "labels/train", "labels/train/a.txt"):
        assert f"give the data set that they are of, {path}" in refusal(tmp_path / part)
    path.unlink()
    name_classes(exports, tmp_path)
    assert f"give the data set that they are of, {tmp_path}" in refusal(tmp_path / "labels")
    names = refusal(tmp_path / "classes.txt")
    assert f"it names classes alone: give the folder of the data set, {tmp_path}" in names
    (tmp_path / "train.txt").write_text("images/train/a.jpg\n")
    assert "a list of images: name it in a data.yaml" in refusal(tmp_path / "train.txt")


def test_what_holds_no_boxes(exports: Any, tiny: Any, tmp_path: Path) -> None:
    images = exports.write_images(tmp_path / "images")
    assert "it holds images, which are for --images, and no boxes" in refusal(images)
    for name in ("cat", "dog"):
        exports.write_images(tmp_path / "animals" / name)
    assert "images in folders (cat; dog), as for classification" in refusal(tmp_path / "animals")
    assert "is a feature store: give the annotations that it was made of" in refusal(tiny.train)
    for kind, names in {
        "run folder": ("config.yaml", "training.json", "results.json"),
        "comparison": ("settings.json", "comparison.json", "cells/x"),
        "sweep": ("settings.json", "sweep.json", "trials/0000"),
    }.items():
        for name in names:
            path = tmp_path / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        assert f"it is a {kind}: give the annotations that it was made of" in refusal(
            tmp_path / kind
        )


def test_folders_of_json_files(exports: Any, tmp_path: Path) -> None:
    exports.write_coco(tmp_path / "train.json")
    assert f"give the file in it: {tmp_path / 'train.json'}" in refusal(tmp_path)
    exports.write_coco(tmp_path / "val.json")
    assert "give one of the files in it: train.json; val.json" in refusal(tmp_path)
    labelme = tmp_path / "labelme" / "a.json"
    labelme.parent.mkdir()
    labelme.write_text(json.dumps({"version": "5", "shapes": [], "imagePath": "a.jpg"}))
    assert "it is LabelMe's, one JSON file an image, which is not read" in refusal(labelme.parent)
    assert "list `images` is missing; it has version, shapes" in refusal(labelme)
    assert "it is LabelMe's" in refusal(labelme)

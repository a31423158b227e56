"""Where a data.yaml leads, however it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cachedet.data.annotation_formats import read_categories, read_dataset, read_sections
from cachedet.errors import DatasetError


@pytest.fixture
def root(exports: Any, tmp_path: Path) -> Path:
    """ds/images/train and ds/labels/train, beside other folders."""
    exports.write_yolo(tmp_path / "ds", {"train": exports.SHOTS})
    return tmp_path / "ds"


@pytest.mark.parametrize(
    ("text", "is_said"),
    [
        ("train: images/train", False),
        ("path: .\ntrain: images/train", False),
        ("path: ''\ntrain: [images/train]", False),
        ("train: ./images/train/", False),
        ("path: ../ds\ntrain: images/train", False),
        ("path: ../datasets/ds\ntrain: images/train", False),
        ("train: ../images/train", True),
        ("train: /home/somebody/work/ds/images/train", True),
        ("train: 'C:\\\\Users\\\\me\\\\images\\\\train'", True),
        ("train: train/images", True),
        ("path: /mnt/data\ntrain: train", True),
    ],
)
def test_paths_that_are_relative_to_something_else(root: Path, text: str, is_said: bool) -> None:
    (root / "data.yaml").write_text(f"{text}\nnames: [cat, dog, bird]\n")
    dataset = read_dataset(annotations=root / "data.yaml", images=root)
    assert dataset.counts["boxes"] == 5
    said = [note for note in dataset.notes if "is not there as it stands; taken is" in note]
    assert len(said) == is_said
    assert not said or said[0].endswith("ds/images/train")


def test_absolute_paths(root: Path) -> None:
    (root / "data.yaml").write_text(f"train: {root}/images/train\nnames: [cat, dog, bird]\n")
    assert read_dataset(annotations=root / "data.yaml", images=root).counts["boxes"] == 5


def test_images_that_are_nowhere(root: Path) -> None:
    (root / "data.yaml").write_text("train: photos/day1\nnames: [cat, dog, bird]\n")
    (root / "images").rename(root / "elsewhere")
    message = r"no images of train \(photos/day1\); places that were looked at: \d+ \(.*as --images"
    with pytest.raises(DatasetError, match=message):
        read_sections(root / "data.yaml")


def test_images_apart_from_the_export(root: Path, exports: Any, tmp_path: Path) -> None:
    """--images is looked at last; labels stay where the data.yaml is."""
    (root / "images").rename(tmp_path / "unused")
    images = exports.write_images(tmp_path / "photos")
    dataset = read_dataset(annotations=root / "data.yaml", images=images)
    assert dataset.annotations.file_names == ("a.jpg", "b.png", "c.jpg", "d.jpg")
    assert dataset.counts["boxes"] == 5


def test_images_outside_of_the_folder_that_is_given(root: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("")
    with pytest.raises(
        DatasetError, match=r"--images .*other does not hold 4 images of the .*give"
    ):
        read_dataset(annotations=root / "data.yaml", images=tmp_path / "other")


def test_a_list_of_images(root: Path) -> None:
    """As CVAT exports it; lines that lead nowhere are images that are missing."""
    lines = ["data/images/train/a.jpg", "./images/train/b.png", "images/train/none.jpg"]
    (root / "train.txt").write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text("path: .\ntrain: train.txt\nnames: {0: cat, 1: dog, 2: bird}\n")
    sections = read_sections(root / "data.yaml")
    names = [image["file_name"] for image in sections.content["images"]]
    assert names == ["images/train/a.jpg", "images/train/b.png", "images/train/none.jpg"]
    assert sections.unread == ["images/train/none.jpg"]
    assert len(sections.content["annotations"]) == 3


def test_a_list_of_something_else(root: Path) -> None:
    (root / "train.txt").write_text("/\n..\nimages/train/a.jpg\na\0b.txt\n")
    (root / "data.yaml").write_text("train: train.txt\nnames: [cat, dog, bird]\n")
    with pytest.raises(DatasetError, match=r"train.txt: lines that name no image: 3 \(/; "):
        read_sections(root / "data.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images\n", "needs `names` of the classes, as"),
        ("names: []\ntrain: images\n", "needs `names` of the classes"),
        ("names: [cat, dog]\n", "names no images: expected `train`, `val` or `test`"),
        (
            "names: [cat, dog, cat, dog, cat]\ntrain: x\n",
            "names of more than one class: 2 ('cat' is",
        ),
        ("names: {0: cat, 3: cat}\ntrain: x\n", "'cat' is [0, 3]). Rename them"),
        ("names: {a: cat}\ntrain: x\n", "`names` needs whole numbers from 0 before the names"),
        ("names: [cat]\nnc: 2\ntrain: x\n", "`nc` is 2, and `names` has 1"),
        (
            "names: [cat]\ntrain: {a: 1}\n",
            "`train` needs a folder or a list of images, got {'a': 1}",
        ),
        ("names: [cat]\ntrain: x\npath: 3\n", "`path` needs a folder"),
        ("- names:\n- cat\n", "is no data.yaml of YOLO"),
        ("names: [cat\n", "is not YAML"),
    ],
)
def test_a_data_yaml_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DatasetError) as caught:
        read_sections(tmp_path / "data.yaml")
    assert message in str(caught.value)


def test_names_stay_text_and_keep_their_numbers(root: Path) -> None:
    (root / "data.yaml").write_text("train: images/train\nnames: {0: no, 2: 7, 1: on}\n")
    assert read_categories(root / "data.yaml").names == ("no", "on", "7")
    assert read_categories(root / "data.yaml").ids == (1, 2, 3)


def test_a_folder_is_taken_for_its_data_yaml(root: Path) -> None:
    (root / "data.yaml").rename(root / "zoo.yaml")
    (root / "other.yaml").write_text("seed: 1\n")
    assert read_sections(root).split == "train"


def test_splits_without_a_data_yaml(root: Path) -> None:
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("cat\ndog\nbird\n")
    assert read_sections(root).split == "train"

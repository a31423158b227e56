"""Where a data.yaml leads, however it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cachedet.data.annotation_formats import read_dataset, read_sections
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
        ("names: [cat]\nnc: '2'\ntrain: x\n", "`nc` is '2', and `names` has 1"),
        ("names: [cat]\nnc: one\ntrain: x\n", "`nc` is 'one', and `names` has 1"),
        (
            "names: [cat, null, ~]\ntrain: x\n",
            "`names` has no name for 2 of its classes (1; 2); write them, in quotes where they",
        ),
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


def test_a_data_yaml_of_thousands_of_classes(root: Path) -> None:
    """More than a config may hold, and its names behind the first 64 kB."""
    text = f"# {'x' * 70_000}\ntrain: images/train\nnc: '3000'\nnames:\n"
    (root / "data.yaml").write_text(text + "".join(f"  {n}: class {n}\n" for n in range(3000)))
    assert len(read_sections(root).content["categories"]) == 3000
    (root / "data.yaml").write_text(text + "#" * (1 << 20))
    with pytest.raises(DatasetError, match="expected a YAML file of at most 1,048,576"):
        read_sections(root / "data.yaml")


def test_names_stay_text_and_keep_their_numbers(root: Path) -> None:
    (root / "data.yaml").write_text("train: images/train\nnames: {0: no, 2: 7, 1: on}\n")
    categories = read_sections(root / "data.yaml").content["categories"]
    assert [one["name"] for one in categories] == ["no", "on", "7"]
    assert [one["id"] for one in categories] == [1, 2, 3]


def test_a_folder_is_taken_for_its_data_yaml(root: Path) -> None:
    (root / "data.yaml").rename(root / "zoo.yaml")
    (root / "other.yaml").write_text("seed: 1\n")
    assert read_sections(root).split == "train"


def test_splits_without_a_data_yaml(root: Path) -> None:
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("cat\ndog\nbird\n")
    assert read_sections(root).split == "train"


def test_no_image_gets_the_label_file_of_another(exports: Any, tmp_path: Path) -> None:
    """Neither by its name in another folder, nor by Label Studio's prefix."""
    shot = exports.SHOTS[0]
    for folder in ("cam1", "cam2"):
        exports.write_images(tmp_path / "images" / folder, [shot])
    exports.write_labels(tmp_path / "labels" / "cam1", [shot])
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat, dog, bird]\n")
    dataset = read_dataset(annotations=tmp_path / "data.yaml", images=tmp_path)
    assert dataset.annotations.offsets.tolist() == [0, 2, 2]
    assert "images without a label file: 1 (images/cam2/a.jpg)" in dataset.notes[0]
    image = tmp_path / "images" / "cam2" / "a.jpg"
    image.rename(tmp_path / "images" / "cam1" / "deadbeef-a.jpg")
    label = tmp_path / "labels" / "cam1" / "a.txt"
    label.rename(label.with_name("deadbeef-a.txt"))
    dataset = read_dataset(annotations=tmp_path / "data.yaml", images=tmp_path)
    assert dataset.annotations.file_names[1].endswith("deadbeef-a.jpg")
    assert dataset.annotations.offsets.tolist() == [0, 0, 2]
    (tmp_path / "images" / "cam1" / "deadbeef-a.jpg").rename(image)
    with pytest.raises(DatasetError, match=r"none of 2 images has a label file, and 1 of other na"):
        read_sections(tmp_path / "data.yaml")


def test_linked_folders_are_named(root: Path, exports: Any, tmp_path: Path) -> None:
    exports.write_images(tmp_path / "elsewhere", exports.SHOTS[:1])
    (root / "images" / "train" / "more").symlink_to(tmp_path / "elsewhere")
    notes = read_sections(root / "data.yaml").notes
    assert "which no images were looked for: 1 (" in notes[0]
    assert "train/more). Put the folders themselves there, or name each in the dat" in notes[0]
    for shot in exports.SHOTS:
        (root / "images" / "train" / shot.name).unlink()
    with pytest.raises(DatasetError, match=r"no images of train .* not entered: .*train/more\. Co"):
        read_sections(root / "data.yaml")


def test_a_missing_image_keeps_its_subfolder(root: Path, exports: Any) -> None:
    exports.write_images(root / "images" / "train" / "z", exports.SHOTS[:1])
    exports.write_labels(root / "labels" / "train" / "z", exports.SHOTS[:2])
    assert read_sections(root / "data.yaml").unread == ["images/train/z/b.jpg"]


def test_a_list_with_backslashes(root: Path) -> None:
    (root / "train.txt").write_text("images\\train\\a.jpg\nimages\\train\\no.jpg\n")
    (root / "data.yaml").write_text("train: train.txt\nnames: [cat, dog, bird]\n")
    sections = read_sections(root / "data.yaml")
    assert len(sections.content["annotations"]) == 2
    assert sections.unread == ["images/train/no.jpg"]
    (root / "train.txt").write_text("images\\train\\no.jpg\n")
    with pytest.raises(DatasetError, match=r"none of 1 listed images is there .*images/train/no"):
        read_sections(root / "data.yaml")


def test_the_last_part_of_a_path_from_another_machine(root: Path) -> None:
    """Not where the path of another split ends so, too."""
    for folder in ("images", "labels"):
        (root / folder / "train").rename(root / "moved")
        (root / folder).rmdir()
        (root / "moved").rename(root / folder)
    text = "train: /mnt/x/images\nnames: [cat, dog, bird]\n"
    (root / "data.yaml").write_text(text)
    sections = read_sections(root / "data.yaml")
    assert len(sections.content["annotations"]) == 5
    assert "train: /mnt/x/images is not there as it stands; taken is" in sections.notes[0]
    (root / "data.yaml").write_text(text + "val: /mnt/y/images\n")
    with pytest.raises(DatasetError, match="no images of train"):
        read_sections(Path(f"{root}/data.yaml:train"))


def test_labels_images_and_classes_in_one_folder(exports: Any, tmp_path: Path) -> None:
    """As LabelImg writes them."""
    exports.write_labels(exports.write_images(tmp_path))
    (tmp_path / "classes.txt").write_text("cat\ndog\nbird\n")
    dataset = read_dataset(annotations=tmp_path, images=tmp_path)
    assert dataset.annotations.file_names == ("a.jpg", "b.png", "c.jpg", "d.jpg")
    assert dataset.counts["boxes"] == 5
    assert dataset.notes == ()

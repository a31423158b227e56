"""`cachedet convert`: what it writes, over what, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cachedet.convert import convert
from cachedet.data.annotation_formats import read_dataset, with_split
from cachedet.errors import ConfigError, DatasetError, InputError


def test_the_file_gives_the_same_annotations(exports: Any, tmp_path: Path) -> None:
    """Masks too; names start from the folder of the data set, or from the one that is given."""
    source = with_split(
        exports.write_yolo(tmp_path / "set", {"train": exports.OUTLINED, "val": exports.SHOTS}),
        "train",
    )
    root = tmp_path / "set"
    report = convert(source, tmp_path / "out.json")
    assert report.images == root
    assert report.split == "train"
    assert report.counts["masks"] == 3
    before = read_dataset(annotations=source, images=root).annotations
    after = read_dataset(annotations=tmp_path / "out.json", images=root).annotations
    assert after.file_names == before.file_names == ("images/train/a.jpg", "images/train/b.png")
    assert after.categories == before.categories
    assert after.masks is not None
    assert before.masks is not None
    assert after.masks.codes.tobytes() == before.masks.codes.tobytes()
    for name in ("image_ids", "sizes_hw", "labels", "crowd", "areas"):
        assert getattr(after, name).tolist() == getattr(before, name).tolist(), name
    assert after.boxes == pytest.approx(before.boxes, abs=1e-9)
    convert(source, tmp_path / "out.json", images=root / "images")  # ours: replaced
    content = json.loads((tmp_path / "out.json").read_text())
    assert list(content) == ["info", "images", "annotations", "categories"]
    assert content["images"][0]["file_name"] == "train/a.jpg"
    assert content["info"] == {"description": "Written by `cachedet convert` from YOLO data set"}


def test_a_coco_file_is_written_as_it_was_understood(exports: Any, tmp_path: Path) -> None:
    content = exports.coco_of()
    content["annotations"][0]["bbox"] = [50, 42, -40, -30]
    (tmp_path / "a.json").write_text(json.dumps(content))
    report = convert(str(tmp_path / "a.json"), str(tmp_path / "out.json"))
    assert report.images is None
    assert "turned round" in report.notes[0]
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["annotations"][0]["bbox"] == [10, 12, 40, 30]
    report = convert(tmp_path / "a.json", tmp_path / "out.json", choose={"classes": "dog"})
    assert report.counts["boxes"] == 2
    with pytest.raises(ConfigError, match="choose: unknown key 'clases'; nearest: 'classes'"):
        convert(tmp_path / "a.json", tmp_path / "out.json", choose={"clases": "dog"})


def test_nothing_of_the_users_is_replaced(exports: Any, tmp_path: Path) -> None:
    source = exports.write_cvat(tmp_path / "a.xml")
    mine = exports.write_coco(tmp_path / "mine.json")
    before = mine.read_bytes()
    with pytest.raises(InputError, match="is there already and is not annotations of `convert`"):
        convert(source, mine)
    assert mine.read_bytes() == before
    names = [{"id": n, "name": f"]{'x' * 99}{n}"} for n in range(1, 99)]  # more than is looked at
    mine.write_text(json.dumps({**json.loads(before), "categories": names}))
    for _ in range(2):
        convert(mine, tmp_path / "out.json")
    with pytest.raises(InputError, match="is the source itself; name another file"):
        convert(mine, mine)


def test_images_without_a_size_are_refused(exports: Any, tmp_path: Path) -> None:
    source = exports.write_yolo(tmp_path / "set", {"train": exports.SHOTS})
    (tmp_path / "set" / "images" / "train" / "a.jpg").write_bytes(b"")
    message = r"images whose size is not known: 1 \(images/train/a.jpg\). COCO needs it: bring or"
    with pytest.raises(DatasetError, match=message):
        convert(source, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_rotated_boxes(exports: Any, tmp_path: Path) -> None:
    shape = '<box label="cat" xtl="20" ytl="30" xbr="60" ybr="50" rotation="90"/>'
    source = exports.write_cvat(tmp_path / "a.xml", exports.SHOTS[:1], shapes=shape)
    with pytest.raises(DatasetError, match="rotated boxes: 1"):
        convert(source, tmp_path / "out.json")
    assert convert(source, tmp_path / "out.json", rotated="outer").counts["boxes"] == 3


def test_names_that_leave_the_folder(exports: Any, tmp_path: Path) -> None:
    """Refused where the folder is given; noted where only the file speaks."""
    content = exports.coco_of()
    for image in content["images"][:2]:
        image["file_name"] = f"../{image['file_name']}x"
    (tmp_path / "a.json").write_text(json.dumps(content))
    images = exports.write_images(tmp_path / "images")
    with pytest.raises(DatasetError, match=r"names that leave the folder .*images: 2 .'../a.jpgx'"):
        convert(tmp_path / "a.json", tmp_path / "out.json", images=images)
    assert not (tmp_path / "out.json").exists()
    notes = convert(tmp_path / "a.json", tmp_path / "out.json").notes
    expected = (
        "file names that leave the folder they start from: 2 (../a.jpgx; ../b.pngx); `extract`"
    )
    assert notes[-1].startswith(expected)

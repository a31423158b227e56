from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachedet.data.coco import read_coco
from cachedet.data.masks import decode_mask
from cachedet.errors import DatasetError


def coco() -> dict[str, Any]:
    return {
        "images": [
            {"id": 5, "file_name": "a.jpg", "width": 100, "height": 50},
            {"id": 2, "file_name": "sub/b.jpg", "width": 80, "height": 60},
            {"id": 9, "file_name": "c.jpg", "width": 80, "height": 60},
        ],
        "annotations": [
            {"id": 1, "image_id": 2, "category_id": 91, "bbox": [1, 2, 3, 4], "iscrowd": 1},
            {"id": 2, "image_id": 5, "category_id": 0, "bbox": [-5, 0, 10, 10], "area": 70.5},
            {"id": 3, "image_id": 5, "category_id": 7, "bbox": [0, 0, 10, 0]},
            {"id": 4, "image_id": 2, "category_id": 7, "bbox": [200, 0, 10, 5]},
            {"id": 5, "image_id": 2, "category_id": 7, "bbox": [float("nan"), 0, 1, 5]},
        ],
        "categories": [
            {"id": 91, "name": "zebra"},
            {"id": 0, "name": "ant"},
            {"id": 7, "name": "cat"},
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    return tmp_path


def read(folder: Path, content: object) -> Any:
    (folder / "a.json").write_text(
        content if isinstance(content, str) else json.dumps(content), encoding="utf-8"
    )
    return read_coco(annotations=folder / "a.json", images=folder / "images")


@pytest.mark.parametrize("area", [math.nan, math.inf])
def test_an_area_that_is_no_number_is_the_boxs(folder: Path, area: float) -> None:
    content = coco()
    edit(["annotations", 0, "area"], area)(content)
    _, _, width, height = content["annotations"][0]["bbox"]
    annotations = read(folder, content).annotations
    assert width * height in annotations.areas.tolist()
    assert np.isfinite(annotations.areas).all()


def test_reads_into_arrays(folder: Path) -> None:
    dataset = read(folder, coco())
    annotations = dataset.annotations
    assert annotations.categories.ids == (0, 7, 91)
    assert annotations.categories.names == ("ant", "cat", "zebra")
    assert annotations.image_ids.tolist() == [5, 2, 9]
    assert annotations.offsets.tolist() == [0, 1, 2, 2]
    np.testing.assert_array_equal(annotations.boxes, [[-5, 0, 5, 10], [1, 2, 4, 6]])
    assert annotations.labels.tolist() == [0, 2]
    assert annotations.crowd.tolist() == [False, True]
    assert annotations.areas.tolist() == [70.5, 12.0]
    assert dataset.path_of(1) == folder / "images" / "sub" / "b.jpg"
    assert dataset.counts == {
        "images": 3,
        "boxes": 2,
        "masks": 0,
        "unusable masks dropped": 0,
        "crowd boxes": 1,
        "images without boxes": 1,
        "degenerate boxes dropped": 2,
        "boxes outside the image dropped": 1,
        "boxes partly outside": 1,
    }


def test_masks_follow_their_boxes(folder: Path) -> None:
    content = coco()
    size = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    first, second, third = content["annotations"][:3]
    first["segmentation"] = {"size": size[2], "counts": [size[2][0] * size[2][1]]}
    second["segmentation"] = [[0, 0, 4, 0, 4, 8, 0, 8]]
    third["segmentation"] = [[0, 0, 9, 0, 9, 9]]  # its box has no area
    dataset = read(folder, content)
    masks = dataset.annotations.masks
    assert len(masks) == 2
    assert decode_mask(masks[0], (size[5][0], size[5][1])).sum() == 32
    assert decode_mask(masks[1], (size[2][0], size[2][1])).sum() == 0  # nothing but background
    assert dataset.counts["masks"] == 2
    kept = dataset.annotations.keep_rows([1, 0])
    assert [kept.masks[0], kept.masks[1]] == [masks[1], masks[0]]
    second["segmentation"] = [[0, 0, 4, 0]]
    dataset = read(folder, content)
    assert (dataset.counts["masks"], dataset.counts["unusable masks dropped"]) == (1, 1)
    assert dataset.annotations.masks[0] == b""
    assert read(folder, coco()).annotations.masks is None


def test_lvis_images_are_named_by_their_url(folder: Path) -> None:
    content = coco()
    del content["images"][0]["file_name"]
    content["images"][0]["coco_url"] = "http://images.example/train2017/000000000005.jpg"
    assert read(folder, content).annotations.file_names[0] == "train2017/000000000005.jpg"


def edit(path: list[Any], value: object) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        node: Any = content
        for key in path[:-1]:
            node = node[key]
        if value is None:
            del node[path[-1]]
        else:
            node[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(["images"], None), "the list `images` is missing; it has annotations, categories"),
        (edit(["categories"], []), "`categories` is empty"),
        (edit(["images"], []), "`images` is empty, expected at least one image"),
        (edit(["images", 1, "id"], 5), "images holds id 5 more than once"),
        (edit(["images", 1, "id"], "x"), r"images\[1\] needs an integer `id`, got 'x'"),
        (edit(["images", 0], 3), r"images\[0\] is not an object"),
        (edit(["images", 1, "file_name"], "a.jpg"), "file_name 'a.jpg' more than once"),
        (edit(["images", 1, "file_name"], None), r"images\[1\] \(id 2\) needs a `file_name`"),
        (edit(["images", 0, "width"], None), r"needs `height` and `width` in pixels"),
        (edit(["annotations", 1, "id"], 1), "annotations holds id 1 more than once"),
        (edit(["annotations", 0, "image_id"], 77), "annotation id 1 has image_id 77"),
        (edit(["annotations", 0, "category_id"], 3), "annotation id 1 has category_id 3"),
        (edit(["annotations", 0, "bbox"], [1, 2, 3]), r"annotation id 1 needs `bbox`"),
        (edit(["annotations", 0, "bbox"], None), r"annotation id 1 needs `bbox`"),
        (edit(["annotations", 0, "bbox"], [0, 0, 10**400, 5]), r"annotation id 1 needs `bbox`"),
        (edit(["annotations", 0, "area"], "big"), "needs a number as `area`, got 'big'"),
        (edit(["annotations", 0, "area"], 10**400), r"needs a number as `area`, got 1000\d+\.\.\."),
        (edit(["annotations", 0, "iscrowd"], "0"), "needs 0 or 1 as `iscrowd`, got '0'"),
        (edit(["annotations", 0, "image_id"], [1]), r"annotation id 1 has image_id \[1\], which"),
        (edit(["images", 0, "width"], 10**30), r"needs `height` and `width` in pixels"),
        (edit(["categories", 1, "id"], 91), "categories holds id 91 more than once"),
        (edit(["images", 0, "file_name"], "../a.jpg"), "leaves the folder"),
        (edit(["images", 0, "file_name"], "/etc/passwd"), "leaves the folder"),
        (edit(["images", 0, "file_name"], ".."), "leaves the folder"),
    ],
)
def test_wrong_content(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = coco()
    change(content)
    with pytest.raises(DatasetError, match=message):
        read(folder, content)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON in UTF-8"), ("[]", "got a list")])
def test_wrong_files(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read(folder, text)


@pytest.mark.parametrize("linked", ["c.jpg", "sub", "loop"])
def test_a_link_out_of_the_folder_needs_a_word(folder: Path, linked: str) -> None:
    """A file, and a folder; a loop of links leads nowhere and is a bad image later on."""
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "b.jpg").touch()
    target = {"c.jpg": folder / "elsewhere" / "b.jpg", "sub": folder / "elsewhere"}
    shutil.rmtree(folder / "images" / linked, ignore_errors=True)
    (folder / "images" / linked).symlink_to(target.get(linked, "loop"))
    content = coco()
    if linked == "loop":
        content["images"][0]["file_name"] = "loop"
        assert read(folder, content).annotations.file_names[0] == "loop"
        return
    message = f"'{linked}' is a link, or lies behind one, that leaves the folder .* --follow-links"
    with pytest.raises(DatasetError, match=message):
        read(folder, content)
    followed = read_coco(annotations=folder / "a.json", images=folder / "images", follow_links=True)
    assert followed.annotations.file_names == ("a.jpg", "sub/b.jpg", "c.jpg")


def test_the_folder_itself_may_be_a_link(folder: Path) -> None:
    content = coco()
    read(folder, content)
    (folder / "linked").symlink_to(folder / "images")
    assert read_coco(annotations=folder / "a.json", images=folder / "linked").counts["images"] == 3


def test_missing_places(folder: Path) -> None:
    with pytest.raises(DatasetError, match="there is no folder"):
        read_coco(annotations=folder / "a.json", images=folder / "none")
    with pytest.raises(DatasetError, match="there is no file"):
        read_coco(annotations=folder / "none.json", images=folder / "images")
    (folder / "empty").mkdir()
    with pytest.raises(DatasetError, match="is an empty folder"):
        read_coco(annotations=folder / "a.json", images=folder / "empty")

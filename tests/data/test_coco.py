from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachedet.data.annotation_formats import read_dataset
from cachedet.data.coco import annotations_of
from cachedet.data.masks import decode_mask
from cachedet.errors import DatasetError

TWICE = "{} holds a `{}` more than once: 1 of them .{}, 2 times.. [GN]"
SAME_FILE = TWICE.format("images", "file_name", "'a.jpg'")
LEAVES = "file names that leave the folder .*: 1 .*Give --images"


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
    return read_dataset(annotations=folder / "a.json", images=folder / "images")


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
        "empty masks": 0,
        "flipped boxes repaired": 0,
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
        (edit(["images"], {"1": {"id": 1}}), "`images` is an object, expected a list of objects"),
        (edit(["annotations"], "many"), "`annotations` is a str, expected a list of objects"),
        (edit(["categories"], ["cat", "dog"]), r"categories\[0\] is not an object, got 'cat'"),
        (edit(["images"], None), "the list `images` is missing; it has annotations, categories"),
        (edit(["categories"], []), "`categories` is empty"),
        (edit(["images"], []), "`images` is empty, expected at least one image"),
        (edit(["images", 1, "id"], 5), TWICE.format("images", "id", 5)),
        (edit(["images", 1, "id"], "x"), r"images\[1\] needs an integer `id`, got 'x'"),
        (edit(["images", 0], 3), r"images\[0\] is not an object"),
        (edit(["images", 1, "file_name"], "a.jpg"), SAME_FILE),
        (edit(["images", 1, "file_name"], "./a.jpg"), SAME_FILE),
        (edit(["images", 1, "file_name"], "x//../a.jpg"), SAME_FILE),
        (edit(["images", 1, "file_name"], None), r"images\[1\] \(id 2\) needs a `file_name`"),
        (edit(["images", 0, "width"], None), r"needs `height` and `width` in pixels"),
        (edit(["annotations", 1, "id"], 1), TWICE.format("annotations", "id", 1)),
        (edit(["annotations", 0, "image_id"], 77), "annotation id 1 has image_id 77"),
        (edit(["annotations", 0, "category_id"], 3), "annotation id 1 has category_id 3"),
        (edit(["annotations", 0, "bbox"], [1, 2, 3]), r"annotation id 1 needs `bbox`"),
        (edit(["annotations", 0, "bbox"], None), r"annotation id 1 needs `bbox`"),
        (edit(["annotations", 0, "bbox"], [0, 0, 10**400, 5]), r"annotation id 1 needs `bbox`"),
        (edit(["annotations", 0, "image_id"], "two"), "'two', which is not in the file; 1 .*whole"),
        (edit(["annotations", 0, "image_id"], "02"), "ids are whole numbers, this is a str"),
        (edit(["annotations", 0, "image_id"], True), "has image_id True, which is not in the file"),
        (edit(["images", 1, "id"], "5"), TWICE.format("images", "id", 5)),
        (edit(["images", 1, "id"], "9" * 10**6), r"needs an integer `id`, got '9+\.\.\.9+'$"),
        (edit(["images", 0, "width"], "wide"), "needs `height` and `width` .* width='wide'"),
        (edit(["annotations", 0, "area"], "big"), "needs a number as `area`, got 'big'"),
        (edit(["annotations", 0, "area"], 10**400), r"needs a number as `area`, got 1000\d+\.\.\."),
        (edit(["annotations", 0, "iscrowd"], "0"), "needs 0 or 1 as `iscrowd`, got '0'"),
        (edit(["annotations", 0, "image_id"], [1]), r"annotation id 1 has image_id \[1\], which"),
        (edit(["images", 0, "width"], 10**30), r"needs `height` and `width` in pixels"),
        (edit(["categories", 1, "id"], 91), TWICE.format("categories", "id", 91)),
        (edit(["images", 0, "file_name"], "../a.jpg"), LEAVES),
        (edit(["images", 0, "file_name"], "/etc/passwd"), LEAVES),
        (edit(["images", 0, "file_name"], ".."), LEAVES),
    ],
)
def test_wrong_content(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = coco()
    change(content)
    with pytest.raises(DatasetError, match=message):
        read(folder, content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON in UTF-8"),
        ("[]", "expected an object with images, annotations, categories, got a list$"),
        ('[{"image_id": 1, "score": 0.5}]', "got a list; it seems to be a results file"),
        ("3", "got a int"),
        ("null", "got a NoneType"),
        ("{}", "the list `images` is missing; it has no keys"),
    ],
)
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
    message = (
        f"links, or names behind them, that leave .*: 1 .'{linked}' leads to .* --follow-links"
    )
    with pytest.raises(DatasetError, match=message):
        read(folder, content)
    followed = read_dataset(
        annotations=folder / "a.json", images=folder / "images", follow_links=True
    )
    assert followed.annotations.file_names == ("a.jpg", "sub/b.jpg", "c.jpg")


def test_the_folder_itself_may_be_a_link(folder: Path) -> None:
    content = coco()
    read(folder, content)
    (folder / "linked").symlink_to(folder / "images")
    assert (
        read_dataset(annotations=folder / "a.json", images=folder / "linked").counts["images"] == 3
    )


def boxes_of(*boxes: list[float], width: int = 100, height: int = 50) -> dict[str, Any]:
    """One image."""
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": width, "height": height}],
        "annotations": [
            {"id": 11 + number, "image_id": 1, "category_id": 1, "bbox": box}
            for number, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }


@pytest.mark.parametrize(
    ("drawn", "mended"),
    [
        ([50, 30, -30, -20], [20, 10, 50, 30]),
        ([50, 10, -30, 20], [20, 10, 50, 30]),
        ([20, 30, 30, -20], [20, 10, 50, 30]),
        ([4, 10, -9, 20], [-5, 10, 4, 30]),
    ],
)
def test_boxes_drawn_backwards_are_turned_round(
    folder: Path, drawn: list[float], mended: list[float]
) -> None:
    content = boxes_of(drawn, [1, 1, 5, 5])
    content["annotations"][0]["area"] = drawn[2] * drawn[3]
    dataset = read(folder, content)
    assert dataset.annotations.boxes.tolist() == [mended, [1, 1, 6, 6]]
    assert dataset.annotations.areas.tolist() == [abs(drawn[2] * drawn[3]), 25]
    assert dataset.counts["flipped boxes repaired"] == 1
    assert dataset.counts["degenerate boxes dropped"] == 0
    note = "1 box of negative width or height turned round (annotation id 11)"
    assert dataset.notes[0] == note


def test_what_is_dropped_is_named(folder: Path) -> None:
    nan, inf = math.nan, math.inf
    bad = [[nan, 0, 1, 1], [0, 0, inf, 1], [-inf, 0, inf, 1], [0, 0, 1e300, 1], [0, 0, 0, 5]]
    content = boxes_of(*bad, [1, 1, 0, -4], [200, 1, 5, 5], [-9, 1, 8, 8], [-9, 1, 18, 8])
    dataset = read(folder, content)
    assert dataset.annotations.boxes.tolist() == [[-9, 1, 9, 9]]
    assert dataset.notes == (
        "1 box of negative width or height turned round (annotation id 16)",
        "6 boxes without area, or of NaN or Inf, dropped (annotation ids 11, 12, 13, 14, 15, ...)",
        "2 boxes outside the image dropped (annotation ids 17, 18)",
        "1 box partly outside the image, cut at its border in training (annotation id 19)",
    )


@pytest.mark.parametrize(
    "boxes",
    [
        [[0.1, 0.2, 0.3, 0.4]],
        [[0, 0, 1, 1], [0.5, 0.5, 0.1, 0.1]],
        [[0.25, 0.5, 0.75, 0.5], [math.nan, 0, 1, 1]],
    ],
)
def test_fractions_are_refused(folder: Path, boxes: list[list[float]]) -> None:
    with pytest.raises(
        DatasetError, match="lie within 0..1: they seem to be fractions of the imag"
    ):
        read(folder, boxes_of(*boxes))
    _, found = annotations_of(boxes_of(*boxes), where=folder, keep_all=True)
    assert any("fractions of the image" in note for note in found.notes), "scored as they stand"


@pytest.mark.parametrize("boxes", [[], [[0, 0, 1, 1]], [[0.5, 0.5, 0.5, 1.5]], [[0.5, 0, 9, 9]]])
def test_small_boxes_are_no_fractions(folder: Path, boxes: list[list[float]]) -> None:
    assert len(read(folder, boxes_of(*boxes)).annotations.boxes) == len(boxes)


def test_corners_are_noticed(folder: Path) -> None:
    corners = [[20, 10, 90, 45], [60, 5, 80, 30], [5, 5, 30, 20], [50, 30, 99, 49]]
    notes = read(folder, boxes_of(*corners)).notes
    assert "3 of 4 boxes reach beyond their image, and none would as corners" in notes[-1]
    as_sides = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in corners]
    assert read(folder, boxes_of(*as_sides)).notes == ()
    _, found = annotations_of(boxes_of(*corners), where=folder, keep_all=True)
    assert "COCO has [x, y, width, height]" in found.notes[-1]


def test_many_corners_are_refused(folder: Path) -> None:
    """What learns of such boxes learns nothing: it is said before hours of work."""
    corners = [[60 + n, 20, 90 + n / 2, 45] for n in range(10)]
    with pytest.raises(
        DatasetError, match=r"10 of 10 boxes reach beyond .*; write x2 - x1 and y2 - y1 as the"
    ):
        read(folder, boxes_of(*corners))
    assert read(folder, boxes_of(*corners[1:])).notes, "too few to be sure"
    assert read(folder, boxes_of(*corners, [50, 5, 20, 20])).notes, "one that is no corner"
    _, found = annotations_of(boxes_of(*corners), where=folder, keep_all=True)
    assert any("as corners" in note for note in found.notes), "scored as they stand"


def test_ids_that_are_text(folder: Path) -> None:
    content = coco()
    expected = read(folder, coco()).annotations
    for image in content["images"]:
        image["id"] = str(image["id"])
    content["images"][0].update(width="100", height=50.0)
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
        annotation["category_id"] = float(annotation["category_id"])
    content["categories"][2]["id"] = "7"
    dataset = read(folder, content)
    assert dataset.annotations.image_ids.tolist() == [5, 2, 9]
    np.testing.assert_array_equal(dataset.annotations.boxes, expected.boxes)
    assert dataset.annotations.categories == expected.categories
    assert dataset.notes[0] == "14 ids read as whole numbers, the first is id '5' in images"


def test_names_of_categories_that_are_missing_or_twice(folder: Path) -> None:
    content = coco()
    first, second, third = content["categories"]
    first["name"], second["name"], third["name"] = None, "same", "same"
    dataset = read(folder, content)
    names = dict(
        zip(dataset.annotations.categories.ids, dataset.annotations.categories.names, strict=True)
    )
    assert names[first["id"]] == str(first["id"])
    assert f"without a name in `categories`: 1, the first of id {first['id']}" in dataset.notes[0]
    assert dataset.notes[1].endswith("have the same name 'same'; they stay two classes")


def test_masks_that_cannot_be_used_are_named(folder: Path) -> None:
    content = boxes_of([1, 1, 9, 9], [2, 2, 9, 9], [3, 3, 9, 9], [4, 4, 9, 9])
    for annotation, segmentation in zip(
        content["annotations"],
        [
            {"size": [100, 50], "counts": [5000]},
            [[0, 0, 9, 0, 9]],
            [[200, 0, 300, 0, 300, 40]],  # beside the image
            [[0, 0, 9, 0, 9, 9], [1, 2]],
        ],
        strict=True,
    ):
        annotation["segmentation"] = segmentation
    dataset = read(folder, content)
    masks = dataset.annotations.masks
    assert masks.are_missing.tolist() == [True, True, False, False]
    assert decode_mask(masks[2], (50, 100)).sum() == 0
    assert dataset.counts["unusable masks dropped"] == 2
    assert dataset.counts["empty masks"] == 1
    unusable, empty = dataset.notes
    assert unusable.startswith(
        "2 masks cannot be used and were dropped, the first of annotation id 11:"
    )
    assert unusable.endswith("got [100, 50]; they stand as [width, height]")
    assert empty.startswith(
        "1 mask without a pixel inside the image, the first of annotation id 13"
    )
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[1, 2]]
    assert read(folder, content).annotations.masks is None


def test_the_least_that_pycocotools_scores(folder: Path) -> None:
    content = boxes_of([1, 1, 9, 9], [2, 2, -9, -9])
    content["images"] = [{"id": 1}, {"id": 2, "file_name": None}, {"id": 3, "width": "wide"}]
    content["annotations"][0]["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    annotations, found = annotations_of(content, where=folder, keep_all=True)
    assert annotations.sizes_hw.tolist() == [[0, 0]] * 3
    assert annotations.xywh.tolist() == [[1, 1, 9, 9], [2, 2, -9, -9]]
    assert annotations.masks is None
    assert "2 boxes" not in found.notes[0]
    assert found.notes[0].startswith("1 box of negative width or height, which match nothing")
    assert "the image's `height` and `width` are not given" in found.notes[1]
    with pytest.raises(DatasetError, match="needs a `file_name`"):
        read(folder, content)


def test_missing_places(folder: Path) -> None:
    with pytest.raises(DatasetError, match="there is no folder"):
        read_dataset(annotations=folder / "a.json", images=folder / "none")
    (folder / "photo.jpg").touch()
    with pytest.raises(DatasetError, match=r"expects a folder of images; .*photo.jpg is a file"):
        read_dataset(annotations=folder / "a.json", images=folder / "photo.jpg")
    with pytest.raises(DatasetError, match="there is no file"):
        read_dataset(annotations=folder / "none.json", images=folder / "images")
    (folder / "empty").mkdir()
    with pytest.raises(DatasetError, match="is an empty folder"):
        read_dataset(annotations=folder / "a.json", images=folder / "empty")

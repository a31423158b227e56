"""`relabel`: what it takes, what it says, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import cachedet
from cachedet.cli import app
from cachedet.errors import DatasetError, InputError, StoreError
from cachedet.evaluation.metrics import ground_truth_json
from cachedet.store.prune import prune_store
from cachedet.store.reader import FeatureStore
from cachedet.structures import Annotations

BOXES = [
    [[1, 2, 30, 40, 1, 0]], [], [[5, 5, 9, 9, 0, 1], [20, 20, 40, 40, 2, 0]], [],
    [[0, 0, 50, 60, 2, 0]],
]  # fmt: skip
SIZES = [(96, 128), (96, 128), (128, 96), (96, 128), (90, 128)]
Json = dict[str, Any]


@pytest.fixture
def annotations(annotations_of: Any) -> Annotations:
    made: Annotations = annotations_of(SIZES, BOXES)
    return made


@pytest.fixture
def root(tmp_path: Path, store_kit: Any, annotations: Annotations) -> Path:
    store: Path = store_kit.of(annotations).fill(tmp_path / "s.zarr", views=("base",))
    return store


@pytest.fixture
def write(tmp_path: Path, annotations: Annotations) -> Callable[..., Path]:
    """The store's annotations as COCO, as `change` has changed them."""

    def write(change: Callable[[Json], object] = lambda values: None) -> Path:
        values = ground_truth_json(annotations)
        change(values)
        path = tmp_path / "new.json"
        path.write_text(json.dumps(values))
        return path

    return write


def correct(values: Json) -> None:
    """A box moved, one gone, one come, one of another class; and a class more."""
    values["annotations"][0]["bbox"][0] += 2
    values["annotations"][2]["category_id"] = 5
    values["annotations"][3] = {
        "id": 99, "image_id": 17, "category_id": 91, "bbox": [3, 3, 9, 9], "iscrowd": 0, "area": 81,
    }  # fmt: skip
    values["categories"].append({"id": 91, "name": "new"})


def test_what_changed_is_told(root: Path, write: Any, store_kit: Any) -> None:
    before = store_kit.files(root)
    report = cachedet.relabel(root, annotations=write(correct))
    assert report.changes is not None
    assert report.changes.lines() == [
        "boxes: 1 added, 1 removed, 1 moved, 1 reclassified, in 4 images",
        "classes added: new (id 91)",
    ]
    assert report.written
    store = FeatureStore.open(root)
    assert store.class_names == ("class 2", "class 5", "class 90", "new")
    assert store.annotations.boxes[0].tolist() == [3, 2, 32, 40]
    assert store.annotations.labels.tolist() == [1, 3, 0, 1]
    assert store.annotations.crowd.tolist() == [False, False, True, False]
    after = store_kit.files(root)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"manifest.json", store_kit.truth(root).name}
    assert store_kit.truth(root).name == f"truth-{report.truth[:16]}.npz"


def test_classes_are_chosen_as_for_extract(root: Path, write: Any) -> None:
    report = cachedet.relabel(root, annotations=write(), choose={"classes": "class 2"})
    assert report.changes is not None
    assert FeatureStore.open(root).class_names == ("class 2",)
    result = CliRunner().invoke(
        app,
        [
            "relabel",
            str(root),
            "--annotations",
            str(write()),
            "--merge-classes",
            "class 2,class 5=x",
        ],
    )
    assert result.exit_code == 0, result.output
    assert set(FeatureStore.open(root).class_names) == {"x", "class 90"}


def test_a_dry_run_only_compares(root: Path, write: Any, store_kit: Any) -> None:
    before = store_kit.files(root)
    report = cachedet.relabel(root, annotations=write(correct), dry_run=True)
    assert not report.written
    assert FeatureStore.open(root).manifest.truth_digest == report.truth_before != report.truth
    assert store_kit.files(root) == before


def test_the_same_labels_write_nothing(root: Path, write: Any, store_kit: Any) -> None:
    before = store_kit.files(root)
    report = cachedet.relabel(root, annotations=write())
    assert report.written is False
    assert report.changes is not None
    assert report.changes.lines() == []
    assert store_kit.files(root) == before


def test_images_in_another_order_with_other_ids_and_folders(
    root: Path, write: Any, annotations: Annotations
) -> None:
    """They are matched by name, and keep the ids that views were drawn from."""

    def change(values: Json) -> None:
        values["images"].reverse()
        for image in values["images"]:
            image["id"] += 1000
            image["file_name"] = f"train/{image['file_name']}"
        for box in values["annotations"]:
            box["image_id"] += 1000

    report = cachedet.relabel(root, annotations=write(change))
    assert not report.written
    assert any("which keeps its own: images were matched by file name" in n for n in report.notes)
    now = FeatureStore.open(root).annotations
    np.testing.assert_array_equal(now.image_ids, annotations.image_ids)
    assert now.file_names == annotations.file_names


def drop_images(values: Json) -> None:
    del values["images"][1:4]
    values["annotations"] = []


def add_images(values: Json) -> None:
    for number in range(7):
        image = {"id": 1000 + number, "file_name": f"added_{number}.jpg", "width": 9, "height": 9}
        values["images"].append(image)


def resize(values: Json) -> None:
    values["images"][2].update(width=48, height=64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            drop_images,
            r"lacks images of .*s.zarr: 3 of 5 \(image_1.jpg; image_2.jpg; image_3.jpg\)\. Give",
        ),
        (
            add_images,
            r"has images that .*s.zarr lacks: 7 \(added_0.jpg; .*; added_4.jpg; and 2 more\)\. "
            r"Nothing was changed: `cachedet extract` into this store with this file extracts them",
        ),
        (
            resize,
            r"other sizes than the images of .*s.zarr have: 1 \(image_2.jpg: 96 x 128 pixels in "
            r"the store, 48 x 64 in the file\)\. Boxes of resized images do not fit its features",
        ),
    ],
)
def test_other_images_are_refused(
    root: Path, write: Any, change: Callable[[Json], None], message: str, store_kit: Any
) -> None:
    before = store_kit.files(root)
    with pytest.raises(InputError, match=message):
        cachedet.relabel(root, annotations=write(change))
    assert store_kit.files(root) == before


def test_images_that_extraction_skipped_are_not_new(root: Path, write: Any) -> None:
    """The kit's stores say that bad.jpg was skipped."""

    def change(values: Json) -> None:
        values["images"].append({"id": 1, "file_name": "bad.jpg", "width": 9, "height": 9})

    assert cachedet.relabel(root, annotations=write(change)).images == 5


def test_boxes_that_extraction_would_drop_are_dropped_and_said(root: Path, write: Any) -> None:
    def change(values: Json) -> None:
        values["annotations"][0]["bbox"] = [500, 500, 9, 9]

    report = cachedet.relabel(root, annotations=write(change))
    assert report.boxes == 3
    assert any("outside" in note for note in report.notes)


def test_labels_that_are_damaged_are_put_right(root: Path, write: Any, store_kit: Any) -> None:
    whole = store_kit.files(root)
    store_kit.truth(root).write_bytes(b"")
    report = cachedet.relabel(root, annotations=write())
    assert report.changes is None
    assert report.written
    assert store_kit.files(root) == whole


def test_a_url_and_a_word(root: Path, write: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="http://host/a.zarr cannot be written"):
        cachedet.relabel("http://host/a.zarr", annotations=write())
    with pytest.raises(InputError, match="--rotated expects refuse or outer"):
        cachedet.relabel(root, annotations=write(), rotated="some")
    with pytest.raises(StoreError, match="not a feature store: nothing is there"):
        cachedet.relabel(tmp_path / "none.zarr", annotations=write())
    with pytest.raises(DatasetError, match="there is no file"):
        cachedet.relabel(root, annotations=tmp_path / "none.json")


def test_a_format_without_ids_keeps_the_ids_of_classes(
    tmp_path: Path, store_kit: Any, annotations_of: Any
) -> None:
    """VOC's classes are numbered by name: a new one in front changes no other."""
    made = annotations_of([(96, 128)], [[[10, 12, 50, 42, 0, 0]]], ids=(1, 2))
    named = replace(made.categories, names=("cat", "dog"))
    root = store_kit.of(replace(made, categories=named)).fill(tmp_path / "s.zarr", views=("base",))
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc/image_0.xml").write_text(
        "<annotation><filename>image_0.jpg</filename><size><width>128</width><height>96</height>"
        "</size><object><name>bird</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax>"
        "<ymax>9</ymax></bndbox></object><object><name>dog</name><bndbox><xmin>10</xmin><ymin>12"
        "</ymin><xmax>50</xmax><ymax>42</ymax></bndbox></object></annotation>"
    )
    report = cachedet.relabel(root, annotations=tmp_path / "voc")
    assert report.changes is not None
    assert report.changes.lines() == [
        "boxes: 1 added, 1 reclassified, in 1 images",
        "classes added: bird (id 3)",
        "classes removed: cat (id 1)",
    ]
    store = FeatureStore.open(root)
    assert store.annotations.categories.ids == (2, 3)
    assert sorted(store.annotations.labels.tolist()) == [0, 1]


def test_sizes_that_only_the_images_tell(
    tmp_path: Path, store_kit: Any, annotations_of: Any
) -> None:
    """YOLO's boxes are shares of an image that is not there."""
    made = annotations_of([(96, 128)], ids=(1, 2))
    root = store_kit.of(made).fill(tmp_path / "s.zarr", views=("base",))
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images/image_0.jpg").write_bytes(b"no image")
    (tmp_path / "labels/image_0.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [a, b]\n")
    with pytest.raises(InputError, match=r"images whose size is not known: 1 \(.*image_0.jpg\)"):
        cachedet.relabel(root, annotations=tmp_path / "data.yaml", split="train")


def test_the_command(root: Path, write: Any) -> None:
    runner, path = CliRunner(), write(correct)
    arguments = ["relabel", str(root), "--annotations", str(path)]
    shown = runner.invoke(app, [*arguments, "--dry-run"], catch_exceptions=False)
    assert "boxes: 1 added, 1 removed, 1 moved, 1 reclassified, in 4 images" in shown.output
    assert "5 images, 4 boxes; nothing was changed (--dry-run)" in shown.output
    done = runner.invoke(app, [*arguments, "--json"], catch_exceptions=False)
    values = json.loads(done.stdout)
    assert values["written"] is True
    assert values["changes"]["classes_added"] == ["new (id 91)"]
    again = runner.invoke(app, arguments, catch_exceptions=False)
    assert "5 images, 4 boxes; it has these labels already" in again.output


def test_no_background_is_named_where_it_takes_images_away(root: Path, write: Any) -> None:
    """Two images of the store have no box; the file has all five."""
    message = (
        r"--no-background leaves out images of .*s.zarr, as .*new.json has no box in them: 2 of 5 "
        r"\(.*; .*\). Relabel without the option, or take these out of the store with --withdraw"
    )
    with pytest.raises(InputError, match=message):
        cachedet.relabel(root, annotations=write(), choose={"background": False})

    def lose(values: Json) -> None:
        del values["images"][1]

    with pytest.raises(InputError, match=r"new.json lacks images of .*: 1 of 5"):
        cachedet.relabel(root, annotations=write(lose))


def keep(*numbers: int) -> Callable[[Json], None]:
    """Only these images of the file, with their boxes."""

    def change(values: Json) -> None:
        values["images"] = [values["images"][number] for number in numbers]
        kept = {image["id"] for image in values["images"]}
        values["annotations"] = [box for box in values["annotations"] if box["image_id"] in kept]

    return change


def names_of(root: Path) -> list[str]:
    return [*FeatureStore.open(root).annotations.file_names]


def test_images_leave_with_a_word(root: Path, write: Any, store_kit: Any) -> None:
    before = store_kit.files(root)
    with pytest.raises(InputError, match="or take these out of the store with --withdraw"):
        cachedet.relabel(root, annotations=write(keep(0, 3, 4)))
    shown = cachedet.relabel(root, annotations=write(keep(0, 3, 4)), withdraw=True, dry_run=True)
    assert (shown.images, shown.images_withdrawn, shown.written) == (3, 2, False)
    assert store_kit.files(root) == before
    report = cachedet.relabel(root, annotations=write(keep(0, 3, 4)), withdraw=True)
    assert (report.images, report.images_withdrawn, report.boxes) == (3, 2, 2)
    assert report.changes is not None
    assert report.changes.lines() == []  # of the images that stay
    assert names_of(root) == ["image_0.jpg", "image_3.jpg", "image_4.jpg"]
    after = store_kit.files(root)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"manifest.json", store_kit.truth(root).name}
    again = cachedet.relabel(root, annotations=write(keep(0, 3, 4)), withdraw=True)
    assert (again.images_withdrawn, again.written) == (0, False)
    assert cachedet.relabel(root, annotations=write(keep(4, 0, 3))).written is False


def test_images_come_back(root: Path, write: Any, store_kit: Any) -> None:
    """As long as the store has their features; by `extract` where it does not."""
    before = store_kit.files(root)
    cachedet.relabel(root, annotations=write(keep(0, 4)), withdraw=True)
    report = cachedet.relabel(root, annotations=write(keep(0, 1, 2, 4)))
    assert (report.images, report.images_returned, report.images_withdrawn) == (4, 2, 0)
    assert report.changes is not None
    assert report.changes.lines() == []
    assert names_of(root) == [f"image_{number}.jpg" for number in (0, 1, 2, 4)]
    store = FeatureStore.open(root)
    assert float(store.read(3, "base")["C4"].max()) == 4.0
    cachedet.relabel(root, annotations=write())
    assert {k: v for k, v in store_kit.files(root).items() if k in before} == before
    cachedet.relabel(root, annotations=write(keep(0, 1, 3, 4)), withdraw=True)
    prune_store(root, dry_run=False)
    message = r"has images that .*s.zarr lacks: 1 \(image_2.jpg\)\. Nothing was changed: `cachedet"
    with pytest.raises(InputError, match=message):
        cachedet.relabel(root, annotations=write())
    report = cachedet.relabel(root, annotations=write(), withdraw=True)
    assert (report.images, report.images_lacking, report.written) == (4, 1, False)


def test_others_take_their_places(root: Path, write: Any) -> None:
    """With the word the file may have images that the store lacks, and need not share any more."""

    def change(values: Json) -> None:
        keep(1)(values)
        values["images"].append({"id": 5, "file_name": "new.jpg", "width": 9, "height": 9})

    report = cachedet.relabel(root, annotations=write(change), withdraw=True)
    assert (report.images, report.images_withdrawn, report.images_lacking) == (1, 4, 1)
    cachedet.relabel(root, annotations=write(keep(0, 2)), withdraw=True)
    assert names_of(root) == ["image_0.jpg", "image_2.jpg"]


def test_no_store_without_images(root: Path, write: Any, store_kit: Any) -> None:
    def rename(values: Json) -> None:
        for image in values["images"]:
            image["file_name"] = f"x_{image['file_name']}"

    before = store_kit.files(root)
    message = (
        r"has no image of .*s.zarr \(there image_0.jpg; .*; here x_image_0.jpg; .*\)\. A store "
        "keeps at least one"
    )
    for withdraw in (True, False):
        with pytest.raises(InputError, match=message):
            cachedet.relabel(root, annotations=write(rename), withdraw=withdraw)
    assert store_kit.files(root) == before


def test_an_image_of_another_folder_is_another_image(
    root: Path, write: Any, annotations: Annotations
) -> None:
    """Where the file's names start as the store's do, `other/image_3.jpg` is none of it."""

    def move(values: Json) -> None:
        values["images"][3]["file_name"] = "other/image_3.jpg"

    report = cachedet.relabel(root, annotations=write(move), withdraw=True)
    assert (report.images_withdrawn, report.images_lacking) == (1, 1)
    with pytest.raises(InputError, match=r"lacks: 1 \(other/image_3.jpg\)"):
        cachedet.relabel(root, annotations=write(move))

    def start_elsewhere(values: Json) -> None:
        for image in values["images"]:
            image["file_name"] = f"train/{image['file_name']}"

    assert cachedet.relabel(root, annotations=write(start_elsewhere)).images_returned == 1


def test_one_that_comes_back_in_another_size_is_refused(root: Path, write: Any) -> None:
    cachedet.relabel(root, annotations=write(keep(0, 1, 3, 4)), withdraw=True)
    with pytest.raises(InputError, match=r"image_2.jpg: 96 x 128 pixels in the store, 48 x 64 in"):
        cachedet.relabel(root, annotations=write(resize))


def test_damaged_labels_of_a_store_that_images_left(root: Path, write: Any, store_kit: Any) -> None:
    cachedet.relabel(root, annotations=write(keep(0, 3, 4)), withdraw=True)
    whole = store_kit.files(root)
    store_kit.truth(root).write_bytes(b"")
    with pytest.raises(InputError, match=r"lacks images of .*: 3 of 5"):
        cachedet.relabel(root, annotations=write(keep(0, 3)))
    assert cachedet.relabel(root, annotations=write(keep(0, 3, 4))).changes is None
    assert store_kit.files(root).items() <= whole.items()


def test_the_command_tells_who_left_and_came(root: Path, write: Any, store_kit: Any) -> None:
    def run(change: Callable[[Json], None], *words: str) -> str:
        given = ["relabel", str(root), "--annotations", str(write(change)), *words]
        done = CliRunner().invoke(app, given, catch_exceptions=False)
        return " ".join(done.output.split())

    assert "2 images would leave the store, 3 stay" in run(keep(0, 3, 4), "--withdraw", "--dry-run")
    left = run(keep(0, 3, 4), "--withdraw")
    assert "2 images left the store, 3 stay; `cachedet prune" in left
    assert "frees what they alone hold" in left
    values = json.loads(run(keep(0, 1, 3, 4), "--json"))
    assert (values["images_returned"], values["images"]) == (1, 4)
    prune_store(root, dry_run=False)
    assert "the file has 1 image that the store lacks" in run(lambda _: None, "--withdraw")
    run(keep(0, 3, 4), "--withdraw")
    assert "1 image came back to the store" in run(keep(0, 1, 3, 4))
    shown = CliRunner().invoke(app, ["info", str(root)], catch_exceptions=False).output
    assert "images withdrawn" in shown
    assert "bytes of withdrawn" in shown

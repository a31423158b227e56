"""Choosing, leaving out and merging classes, before anything is made of annotations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.config.run import ALL_CLASSES, ClassChoice
from cachedet.convert import convert
from cachedet.data.annotation_formats import read_dataset, read_sections
from cachedet.data.class_choice import choose_classes
from cachedet.errors import DatasetError
from cachedet.structures import Annotations, CategoryMap

ZOO = CategoryMap(
    ids=(1, 3, 4, 8, 9, 11), names=("cat", "car", "dog", "truck", "red, large", "dog")
)


def chosen(**choice: Any) -> dict[int, str]:
    found = choose_classes(ZOO, ClassChoice(**choice), where=Path("zoo.json")).categories
    return dict(zip(found.ids, found.names, strict=True))


def test_ids_stay_and_a_merged_class_has_the_smallest() -> None:
    assert chosen() == dict(zip(ZOO.ids, ZOO.names, strict=True))
    assert chosen(classes="car,cat") == {1: "cat", 3: "car"}
    assert chosen(classes=("truck", " cat ,")) == {1: "cat", 8: "truck"}
    assert chosen(classes="dog") == {4: "dog", 11: "dog"}  # one name, two classes: both
    assert chosen(ignore="dog,car") == {1: "cat", 8: "truck", 9: "red, large"}
    merged = ("truck,car=vehicle", "cat,dog=pet")
    assert chosen(merge=merged) == {1: "pet", 3: "vehicle", 9: "red, large"}
    assert chosen(merge=merged, classes="vehicle") == {3: "vehicle"}
    assert chosen(merge=merged, ignore=["vehicle", "red, large"]) == {1: "pet"}


def test_a_name_with_a_comma_is_taken_where_it_stands_alone() -> None:
    assert chosen(classes=("red, large", "cat")) == {1: "cat", 9: "red, large"}
    assert chosen(merge="red, large=big")[9] == "big"


def test_names_may_be_kept_by_what_is_merged() -> None:
    """Two classes of one name become one; a part may give its name, or lend it to another."""
    assert chosen(merge="dog=dog", ignore="cat") == {
        3: "car", 4: "dog", 8: "truck", 9: "red, large",
    }  # fmt: skip
    assert chosen(merge="car,truck=car", classes="car") == {3: "car"}
    assert chosen(merge=("cat=dog", "dog=cat"), classes="cat,dog") == {1: "dog", 4: "cat"}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"classes": "kat"}, "--classes: zoo.json has no class 'kat'; nearest: 'cat'; it "
         "has cat, car, dog, truck, red, large"),
        ({"ignore": "cat,zebra!"}, "--ignore-classes: zoo.json has no class 'zebra!'; it has cat"),
        ({"classes": "car", "merge": "car,truck=vehicle"},
         "--classes: zoo.json has no class 'car'; it is merged into 'vehicle'; it has cat, "
         "vehicle, dog, red, large"),
        ({"classes": "cat,car", "ignore": "car"},
         "--classes and --ignore-classes both name 'car'; leave it out of one of them"),
        ({"classes": " , "}, "--classes names no class; zoo.json has cat"),
        ({"ignore": ("cat,car,dog,truck", "red, large")},
         "--ignore-classes names all classes of zoo.json: cat, car, dog, truck, red, large; keep"),
        ({"merge": "car,truck"}, "--merge-classes expects classes and the name they get, as "
         "car,truck=vehicle, got 'car,truck'"),
        ({"merge": "=x"}, "and the name they get, as car,truck=vehicle, got '=x'"),
        ({"merge": "car="}, "and the name they get, as car,truck=vehicle, got 'car='"),
        ({"merge": ("car=x", "truck=x")},
         "merges into 'x' twice; name all its parts at once, as a,b,c=x"),
        ({"merge": ("car,truck=x", "cat,car=y")},
         "--merge-classes merges 'car' into 'x' and 'y'; choose one"),
        ({"merge": "car,truck=cat"},
         "makes a class 'cat', and zoo.json has another one of that name (id 1): name it among "
         "the parts too, or take a new name"),
        ({"merge": "car,truck,car=x"},
         "--merge-classes names 'car' twice in 'car,truck,car=x'; name each part once"),
        ({"classes": "DOG"}, "--classes: zoo.json has no class 'DOG'; nearest: 'dog'; it has"),
        ({"merge": "car,bus=x"}, "--merge-classes: zoo.json has no class 'bus'; it has cat, car"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(message)):
        chosen(**choice)


def test_the_first_ten_of_many_classes_are_named() -> None:
    many = CategoryMap(ids=tuple(range(99)), names=tuple(f"class {n}" for n in range(99)))
    with pytest.raises(DatasetError, match="it has class 0, class 1, .*, class 9, and 89 more"):
        choose_classes(many, ClassChoice(classes="x"), where=Path("a"))


def sources_of(exports: Any, root: Path, shots: Any) -> dict[Path, Path]:
    """Annotations of every format -> the folder of their images."""
    images = exports.write_images(root / "images", shots)
    (root / "classes.txt").write_text("\n".join(exports.NAMES) + "\n")
    yolo = exports.write_yolo(root / "yolo", {"train": shots})
    return {
        exports.write_coco(root / "a.json", shots): images,
        exports.write_cvat(root / "a.xml", shots): images,
        exports.write_voc(root / "voc", shots): images,
        yolo: root / "yolo" / "images" / "train",
    }


def facts_of(annotations: Annotations) -> list[Any]:
    """All but how a format rounds."""
    masks = None if annotations.masks is None else annotations.masks.codes.tobytes()
    arrays = [
        getattr(annotations, name).tolist() for name in ("sizes_hw", "offsets", "labels", "crowd")
    ]
    return [annotations.file_names, annotations.categories, *arrays, masks]


@pytest.mark.parametrize("kind", ["boxes", "outlines"])
def test_a_choice_is_the_same_in_every_format(exports: Any, tmp_path: Path, kind: str) -> None:
    shots = exports.SHOTS if kind == "boxes" else exports.OUTLINED
    choice = ClassChoice(merge="bird,cat=pet", ignore="dog", background=False)
    found = []
    for source, images in sources_of(exports, tmp_path, shots).items():
        if kind == "outlines" and source.name == "voc":
            continue
        dataset = read_dataset(annotations=source, images=images, choose=choice)
        assert dataset.counts["boxes of classes left out"] == (2 if kind == "boxes" else 1)
        assert "classes used: 1 of 2; left out: dog" in dataset.notes
        assert "merged into 'pet': cat, bird" in dataset.notes
        found.append(facts_of(dataset.annotations))
    assert all(one == found[0] for one in found[1:])
    assert found[0][1] == CategoryMap(ids=(1,), names=("pet",))
    assert found[0][0] == (("a.jpg", "b.png", "d.jpg") if kind == "boxes" else ("a.jpg", "b.png"))


def test_crowds_and_masks_stay_with_their_boxes(exports: Any, tmp_path: Path) -> None:
    content = exports.coco_of(exports.OUTLINED)
    for entry in content["annotations"][1:]:
        entry["iscrowd"] = 1
    (tmp_path / "a.json").write_text(json.dumps(content))
    images = exports.write_images(tmp_path / "images", exports.OUTLINED)
    full, some = (
        read_dataset(annotations=tmp_path / "a.json", images=images, choose=choice).annotations
        for choice in (ALL_CLASSES, ClassChoice(classes="dog,bird"))
    )
    assert full.masks is not None
    assert some.masks is not None
    assert some.crowd.tolist() == [True, True]
    assert [some.masks[box] for box in range(2)] == [full.masks[box] for box in (1, 2)]
    assert some.areas.tolist() == full.areas[1:].tolist()


def test_background_is_kept_unless_it_is_left_out(exports: Any, tmp_path: Path) -> None:
    source = exports.write_coco(tmp_path / "a.json")
    images = exports.write_images(tmp_path / "images")
    kept = read_dataset(annotations=source, images=images, choose=ClassChoice(classes="bird"))
    assert len(kept.annotations) == 4
    assert kept.counts["images without boxes"] == 3
    choice = ClassChoice(classes="bird", background=False)
    left = read_dataset(annotations=source, images=images, choose=choice)
    assert left.annotations.file_names == ("b.png",)
    names = ("images", "boxes", "images without boxes", "images without boxes left out")
    assert [left.counts[name] for name in names] == [1, 1, 0, 3]
    report = convert(source, tmp_path / "out.json", images=images, choose=choice)
    assert report.counts == left.counts
    written = json.loads((tmp_path / "out.json").read_text())
    assert [image["id"] for image in written["images"]] == [2]
    assert written["categories"] == [{"id": 3, "name": "bird"}]
    exports.write_coco(tmp_path / "bare.json", exports.SHOTS[2:3])
    with pytest.raises(DatasetError, match="no image has a box, and --no-background leaves out"):
        read_dataset(
            annotations=tmp_path / "bare.json", images=images, choose=ClassChoice(background=False)
        )


def test_damaged_and_missing_images_are_no_background(exports: Any, tmp_path: Path) -> None:
    """Their boxes are not known: they stay, to be refused or skipped by name."""
    source = exports.write_yolo(tmp_path, {"train": exports.SHOTS})
    folder = tmp_path / "images" / "train"
    (folder / "a.jpg").write_bytes(b"")
    (folder / "b.png").unlink()
    dataset = read_dataset(annotations=source, images=folder, choose=ClassChoice(background=False))
    assert sorted(Path(name).stem for name in dataset.annotations.file_names) == ["a", "b", "d"]


def test_a_box_of_no_class_is_refused_all_the_same(exports: Any, tmp_path: Path) -> None:
    content = exports.coco_of()
    content["annotations"][0]["category_id"] = 77
    (tmp_path / "a.json").write_text(json.dumps(content))
    images = exports.write_images(tmp_path / "images")
    with pytest.raises(DatasetError, match="has category_id 77, which is not in the file"):
        read_dataset(
            annotations=tmp_path / "a.json", images=images, choose=ClassChoice(classes="cat")
        )


def test_ids_that_are_text_are_still_said(exports: Any, tmp_path: Path) -> None:
    content = exports.coco_of()
    for entry in content["annotations"]:
        entry["category_id"] = str(entry["category_id"])
    (tmp_path / "a.json").write_text(json.dumps(content))
    sections = read_sections(tmp_path / "a.json", choose=ClassChoice(classes="cat"))
    assert "5 ids read as whole numbers" in sections.notes[0]
    assert len(sections.content["annotations"]) == 2


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), max_size=12),
    kept=st.sets(st.integers(0, 4), min_size=1),
    into=st.lists(st.integers(0, 2), min_size=5, max_size=5),
)
def test_choosing_is_a_filter_of_boxes(
    labels: list[int], kept: set[int], into: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """All classes are the identity; some are what is left of all; merging loses no box."""
    folder = tmp_path_factory.mktemp("choice")
    (folder / "images").mkdir()
    (folder / "images" / "a.jpg").touch()
    names = [f"c{n}" for n in range(5)]
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 99, "height": 99} for n in (1, 2)],
        "categories": [{"id": 2 * n + 1, "name": name} for n, name in enumerate(names)],
        "annotations": [
            {"id": n, "image_id": n % 2 + 1, "category_id": 2 * label + 1, "bbox": [n, n, 9, 9]}
            for n, label in enumerate(labels)
        ],
    }
    (folder / "a.json").write_text(json.dumps(content))

    def read(**choice: Any) -> Annotations:
        return read_dataset(
            annotations=folder / "a.json", images=folder / "images", choose=ClassChoice(**choice)
        ).annotations

    full = read()
    every = read(classes=",".join(names))
    assert facts_of(every) == facts_of(full)
    assert every.boxes.tobytes() == full.boxes.tobytes()
    ignored = [name for n, name in enumerate(names) if n not in kept]
    some = read(classes=[names[n] for n in kept])
    assert facts_of(some) == facts_of(read(ignore=ignored))
    is_kept = np.isin(full.labels, sorted(kept))
    assert some.boxes.tobytes() == full.boxes[is_kept].tobytes()
    ids = np.array(full.categories.ids)
    ids_now = np.array(some.categories.ids)[some.labels]
    assert ids_now.tolist() == ids[full.labels[is_kept]].tolist()
    groups = {m: [names[n] for n in range(5) if into[n] == m] for m in set(into)}
    merged = read(merge=[f"{','.join(parts)}=m{m}" for m, parts in groups.items()])
    assert merged.boxes.tobytes() == full.boxes.tobytes()
    assert [merged.categories.names[k] for k in merged.labels] == [
        f"m{into[label]}" for label in full.labels
    ]
    assert all(2 * into.index(m) + 1 in merged.categories.ids for m in groups)

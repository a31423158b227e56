"""The same data set in every format, from the command line to a scored store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachedet.cli import app
from cachedet.errors import InputError
from cachedet.evaluation.files import read_annotations_of, read_counts
from cachedet.extract import extract
from cachedet.loading.targets import targets_of
from cachedet.store.reader import FeatureStore


def blocks_of(store: Path) -> dict[str, str]:
    """Every file of features, by a digest of its bytes."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("c/**/*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def sources(exports: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Annotations and the folder of images."""
    root = tmp_path_factory.mktemp("sources")
    images = exports.write_images(root / "images")
    exports.write_voc(root / "voc")
    (root / "voc" / "classes.txt").write_text("cat\ndog\nbird\n")
    exports.write_roboflow_yolo(root / "yolo", {"train": exports.SHOTS, "valid": exports.SHOTS[:1]})
    return {
        "coco": (exports.write_coco(root / "a.json"), images),
        "yolo": (Path(f"{root / 'yolo' / 'data.yaml'}:train"), root / "yolo"),
        "voc": (root / "voc", images),
        "cvat": (exports.write_cvat(root / "a.xml"), images),
    }


def test_features_are_byte_equal_and_targets_within_half_a_pixel(
    tiny: Any, sources: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    stores = {}
    for name, (source, images) in sources.items():
        store = tmp_path / f"{name}.zarr"
        config = tiny.extract_config(store, annotations=source, images=images, codec="int8")
        extract(config)
        stores[name] = FeatureStore.open(store)
    expected, blocks = stores["coco"], blocks_of(tmp_path / "coco.zarr")
    assert len(blocks) > 4
    for name, store in stores.items():
        assert blocks_of(tmp_path / f"{name}.zarr") == blocks, name
        assert store.annotations.categories == expected.annotations.categories
        for row in range(len(store)):
            for view in ("base", "hflip"):
                ours, theirs = (targets_of(each, row, view) for each in (store, expected))
                assert ours.labels.tolist() == theirs.labels.tolist()
                apart = (ours.boxes - theirs.boxes).abs()
                assert not len(apart) or float(apart.max()) < 0.5, (name, row, view)


def test_a_store_is_scored_against_any_format(
    tiny: Any, sources: dict[str, tuple[Path, Path]], tmp_path: Path, exports: Any
) -> None:
    """Images are matched by name, classes too: the formats have no numbers of their own."""
    annotations, images = sources["coco"]
    extract(tiny.extract_config(tmp_path / "s.zarr", annotations=annotations, images=images))
    held = FeatureStore.open(tmp_path / "s.zarr").annotations.keep_rows([3, 0, 2])
    shuffled = exports.coco_of()
    for image in shuffled["images"]:
        image["id"] = 5 - image["id"]
    for annotation in shuffled["annotations"]:
        annotation["image_id"] = 5 - annotation["image_id"]
    (tmp_path / "b.json").write_text(json.dumps(shuffled))
    for source in (*(path for path, _ in sources.values()), tmp_path / "b.json"):
        truth = read_annotations_of(held, source)
        assert truth.annotations.labels.tolist() == held.labels.tolist(), source
        assert np.abs(truth.annotations.boxes - held.boxes).max() < 0.5
        assert truth.annotations.image_ids.tolist() == held.image_ids.tolist()
        assert read_counts(str(source), held.categories) == {1: 2, 2: 2, 3: 1}
    exports.write_voc(tmp_path / "few", exports.SHOTS[:2])
    with pytest.raises(
        InputError, match=r"few does not describe the image d.jpg of the store .2 of"
    ):
        read_annotations_of(held, tmp_path / "few")


def run(words: Sequence[object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status, and what stands on the screen."""
    try:
        status = app([str(word) for word in words], standalone_mode=False)
    except SystemExit as ended:
        status = ended.code
    output = capsys.readouterr()
    return int(status or 0), output.out + output.err


def test_commands_take_a_split(
    tiny: Any,
    sources: dict[str, tuple[Path, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = sources["yolo"][1]
    data = folder / "data.yaml"
    shared = ["--images", folder, "--annotations", data, "--backbone", "test_resnet"]
    shared += ["--weights", tiny.weights, "--image-size", 64, "--device", "cpu"]
    status, said = run(["extract", *shared, "--store", tmp_path / "s.zarr"], capsys)
    assert status == 1
    assert "error: " in said
    assert "has several splits (train, val): choose one with --split, or as data.yaml:train" in said
    words = ["extract", *shared, "--store", tmp_path / "s.zarr", "--split", "valid"]
    status, said = run([*words, "--views", "base"], capsys)
    assert status == 0
    assert "data.yaml: YOLO data set, split val, images in " in said
    assert "valid/images (images: 1, boxes: 2, classes: 3)" in said
    status, said = run([*words, "--rotated", "inner"], capsys)
    assert status == 1
    assert "rotated" in said
    status, said = run(["convert", data, tmp_path / "out.json", "--split", "train"], capsys)
    assert status == 0, said
    assert f"file names start from {folder}\n" in said
    assert f"{tmp_path / 'out.json'}\n" in said
    status, said = run(["convert", data, tmp_path / "out.json", "--rotated", "x"], capsys)
    assert (status, "--rotated expects refuse or outer, got 'x'" in said) == (1, True)
    words = ["estimate", *shared, "--store", tmp_path / "t.zarr", "--split", "train"]
    status, said = run([*words, "--rotated", "inner"], capsys)
    assert (status, "rotated" in said) == (1, True)
    words = ["compare", "retinanet_fpn_tiny", *shared, "--split", "train", "--out", tmp_path / "c"]
    words += ["--val-annotations", tiny.paths.val, "--device", "cpu"]
    status, said = run(words, capsys)
    assert (status, "has other classes than --annotations" in said) == (1, True), said
    status, said = run([*words, "--val-annotations", data, "--val-split", "x"], capsys)
    assert (status, "has no split 'x': it has train, val" in said) == (1, True), said
    label = folder / "valid" / "labels" / "a.txt"  # found out before anything is extracted
    before = label.read_text()
    label.write_text("7 .5 .5 .1 .1\n")
    status, said = run([*words, "--val-annotations", data, "--val-split", "valid"], capsys)
    label.write_text(before)
    assert (status, "lines of a class number without a name: 1 (labels/a.txt" in said) == (1, True)
    assert not (tmp_path / "c").exists()
    (tmp_path / "found.json").write_text(
        json.dumps([{"image_id": 1, "category_id": 1, "bbox": [10, 12, 40, 30], "score": 0.9}])
    )
    words = ["eval", "--detections", tmp_path / "found.json", "--annotations", data, "--json"]
    status, said = run([*words, "--split", "train"], capsys)
    assert status == 0, said
    assert '"ap50": ' in said
    status, said = run(["eval", tmp_path, "--store", tmp_path, "--split", "val"], capsys)
    assert (status, "--split val is one of --annotations, which is missing" in said) == (1, True)

"""Features belong to the bytes that were checked, whatever happens to the files meanwhile."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cachedet.backbone.frozen import load_backbone
from cachedet.data.annotation_formats import read_dataset
from cachedet.data.coco import CocoDataset
from cachedet.data.survey import scan_images
from cachedet.errors import BadImageError
from cachedet.extract import extract
from cachedet.extraction.inputs import InputLoader, make_inputs
from cachedet.extraction.pipeline import ExtractionPipeline
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.plan import StorePlan
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store
from cachedet.store.writer import StoreWriter


@pytest.fixture
def dataset(tiny: Any, tmp_path: Path) -> CocoDataset:
    images = shutil.copytree(tiny.paths.images, tmp_path / "images")
    return read_dataset(annotations=tiny.paths.train, images=images)


def loader_of(dataset: CocoDataset, tiny: Any, *, keep_nbytes: int = 0) -> InputLoader:
    scan = scan_images(dataset, workers=2, keep_nbytes=keep_nbytes)
    return make_inputs(
        dataset.annotations,
        images=dataset.images,
        image_size=128,
        pad_multiple=32,
        preprocessing=load_backbone("test_resnet", weights=str(tiny.weights)).preprocessing,
        contents=scan.contents,
        kept=scan.images,
    )


@pytest.mark.parametrize("change", ["other", "one byte", "gone", "pipe"])
def test_a_changed_file_is_an_error_that_names_it(
    dataset: CocoDataset, tiny: Any, change: str
) -> None:
    loader = loader_of(dataset, tiny)
    path = dataset.path_of(1)
    before = loader.load(1, "base")
    if change == "other":
        shutil.copy(dataset.path_of(0), path)
    elif change == "one byte":
        path.write_bytes(path.read_bytes() + b"\0")
    else:
        path.unlink()
    if change == "pipe":
        os.mkfifo(path)
    message = {"gone": "No such file", "pipe": "it is a folder, pipe or device"}.get(
        change, "its bytes are not those that were checked"
    )
    with pytest.raises(BadImageError, match=f"{path.name}: {message}"):
        loader.load(1, "base")
    assert before.isfinite().all()
    loader.load(0, "hflip")


def test_kept_pixels_need_no_second_reading(dataset: CocoDataset, tiny: Any) -> None:
    """And give the same input to the bit."""
    read, kept = loader_of(dataset, tiny), loader_of(dataset, tiny, keep_nbytes=1 << 28)
    rows = range(len(dataset.annotations))
    views = ("base", "hflip", "scale-0.5")
    wanted = {(row, view): read.load(row, view) for row in rows for view in views}
    shutil.rmtree(dataset.images)
    for (row, view), image in wanted.items():
        assert torch.equal(kept.load(row, view), image)


def test_no_block_is_committed_of_a_changed_image(
    dataset: CocoDataset, tiny: Any, tmp_path: Path
) -> None:
    root = tmp_path / "s.zarr"
    extract(tiny.extract_config(root, images=dataset.images, views="base"))
    for path in (root / "commits").iterdir():
        path.unlink()
    loader = loader_of(dataset, tiny)
    shutil.copy(dataset.path_of(0), dataset.path_of(7))
    writer = StoreWriter(root, StorePlan.load(LocalFiles(root)))
    pipeline = ExtractionPipeline(
        loader=loader,
        backbone=load_backbone("test_resnet", weights=str(tiny.weights), image_size=128),
        writer=writer,
        batch_size=2,
        workers=2,
        on_block=lambda block, is_ours: None,
    )
    with pytest.raises(BadImageError, match="are not those that were checked"):
        pipeline.run(writer.blocks)
    assert any(7 in block.rows for block in writer.missing_blocks())


def test_names_that_are_no_utf8_are_extracted_and_read_back(
    dataset: CocoDataset, tiny: Any, tmp_path: Path
) -> None:
    """A name of Latin-1 bytes, and one that only looks like such bytes."""
    names = [os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"\xff.png"), "日本.png"]

    def rename(content: dict[str, Any]) -> None:
        for entry, name in zip(content["images"], names, strict=False):
            (dataset.images / entry["file_name"]).rename(dataset.images / name)
            entry["file_name"] = name

    annotations = tiny.change(tiny.paths.train, tmp_path / "a.json", rename)
    root = tmp_path / "s.zarr"
    report = extract(
        tiny.extract_config(root, images=dataset.images, annotations=annotations, views="base")
    )
    assert report.blocks_written == report.blocks_total
    assert list(FeatureStore.open(root).annotations.file_names[:3]) == names
    assert verify_store(root, deep=True).is_good


def test_names_that_no_file_can_have_are_skipped(
    dataset: CocoDataset, tiny: Any, tmp_path: Path
) -> None:
    bad = ["half\ud83d.png", "a\nb.png", "n\0l.png", "x" * 300]

    def rename(content: dict[str, Any]) -> None:
        for entry, name in zip(content["images"], bad, strict=False):
            entry["file_name"] = name

    annotations = tiny.change(tiny.paths.train, tmp_path / "a.json", rename)
    config = tiny.extract_config(
        tmp_path / "s.zarr", images=dataset.images, annotations=annotations, views="base"
    )
    with pytest.raises(BadImageError, match="4 of 8 images cannot be used"):
        extract(config)
    report = extract(config.model_copy(update={"on_bad_image": "skip"}))
    assert [name for name, _ in report.skipped] == bad
    assert [name for name, _ in FeatureStore.open(tmp_path / "s.zarr").manifest.skipped] == bad


def test_links_are_followed_where_that_is_asked_for(
    dataset: CocoDataset, tiny: Any, tmp_path: Path
) -> None:
    """As data sets of links into a folder of blobs have them; features are the same."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in dataset.annotations.file_names:
        (linked / name).symlink_to(dataset.images / name)
    store = tmp_path / "s.zarr"
    extract(tiny.extract_config(store, images=linked, follow_links=True))
    one, other = FeatureStore.open(store), FeatureStore.open(tiny.train)
    np.testing.assert_array_equal(one.contents, other.contents)
    assert one.manifest.fingerprint() == other.manifest.fingerprint()


def test_a_float_image_gives_a_note(dataset: CocoDataset, tiny: Any, tmp_path: Path) -> None:
    name = dataset.annotations.file_names[0]
    height, width = dataset.annotations.size_of(0)
    grey = np.full((height, width), 0.5, dtype=np.float32)
    Image.fromarray(grey).save(dataset.images / "float.tif")

    def rename(content: dict[str, Any]) -> None:
        entry = next(one for one in content["images"] if one["file_name"] == name)
        entry["file_name"] = "float.tif"

    annotations = tiny.change(tiny.paths.train, tmp_path / "a.json", rename)
    report = extract(
        tiny.extract_config(
            tmp_path / "s.zarr", images=dataset.images, annotations=annotations, views="base"
        )
    )
    assert report.notes == (("float.tif", "its floats, 0.5 to 0.5, are multiplied by 255"),)
    json.dumps(report.notes)

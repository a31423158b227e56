"""The store on disk: what is read is what was committed, or an exception (law L4)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.errors import CodecError, MissingFeatureError, StoreError, StoreMismatchError
from cachedet.store.format.manifest import images_digest
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import describe_store
from cachedet.structures import Annotations, FeatureSpec, LevelSpec, Preprocessing


def test_round_trip(root: Path, annotations: Annotations, kit: Any) -> None:
    store = FeatureStore.open(root)
    store.require_complete()
    assert len(store) == 5
    asked = kit.make_manifest()
    assert store.manifest.identity() == asked.identity()
    assert store.manifest.skipped == asked.skipped
    for row in range(5):
        for view in ("base", "hflip"):
            features = store.read(row, view)
            shapes = kit.spec.map_shapes(store.bucket_of(row, view))
            assert {level: tuple(m.shape) for level, m in features.items()} == shapes
            expected = row + (100.0 if view == "hflip" else 0.0)
            assert float(features["C4"].min()) == float(features["C4"].max()) == expected
            assert float(features["C5"].min()) == expected + 0.5
    assert store.annotations.file_names == annotations.file_names
    assert list(store.read(0, "base", ["C5"])) == ["C5"]


def test_maps_of_zeros_are_written_too(tmp_path: Path, kit: Any) -> None:
    writer = kit.open_writer(tmp_path / "s.zarr")
    for block in writer.missing_blocks():
        writer.write(block, {k: torch.zeros_like(v) for k, v in kit.features_of(block).items()})
    assert float(FeatureStore.open(writer.root).read(3, "base")["C4"].abs().max()) == 0.0


def test_an_unfinished_store_says_so_and_continues(tmp_path: Path, kit: Any) -> None:
    writer = kit.open_writer(tmp_path / "s.zarr")
    first = writer.missing_blocks()[0]
    writer.write(first, kit.features_of(first))
    store = FeatureStore.open(writer.root)
    assert float(store.read(first.rows[0], "base")["C4"].max()) == first.rows[0]
    with pytest.raises(MissingFeatureError, match="5 of 6 blocks are not committed"):
        store.require_complete()
    with pytest.raises(MissingFeatureError, match="hflip-b96x128-000000 was never committed"):
        store.read(0, "hflip")
    again = kit.open_writer(writer.root)
    assert again.missing_blocks() == writer.missing_blocks() == list(writer.blocks[1:])


def test_a_reader_sees_only_what_was_committed_when_it_opened(tmp_path: Path, kit: Any) -> None:
    writer = kit.open_writer(tmp_path / "s.zarr")
    store = FeatureStore.open(writer.root)
    block = writer.blocks[0]
    writer.write(block, kit.features_of(block))
    with pytest.raises(MissingFeatureError):
        store.read(block.rows[0], block.view)


def test_changed_inputs_are_refused_by_name(root: Path, annotations: Annotations, kit: Any) -> None:
    with pytest.raises(StoreMismatchError, match="codec: 'fp16' in the store, 'fp32' now"):
        kit.open_writer(root, codec="fp32")
    message = "weights_digest: dddddddddddd in.*image_size: 128 in"
    with pytest.raises(StoreMismatchError, match=message):
        kit.open_writer(root, image_size=256, weights_digest="e")
    contents = kit.contents_of(annotations)
    contents[3] = 99
    message = r"files changed: image_3.jpg\. `cachedet relabel .*--withdraw` takes images out that"
    with pytest.raises(StoreMismatchError, match=message):
        kit.open_writer(root, contents=contents, images_digest=images_digest(annotations, contents))
    kit.open_writer(root, weights="other words", versions={})  # not part of the identity


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights_digest", "e" * 64),
        ("backbone", "resnet50"),
        ("preprocessing", Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), interpolation="nearest")),
        ("codec", "int8"),
        ("image_size", 64),
        ("block_size", 3),
        ("batch_size", 3),
        ("spec", FeatureSpec((LevelSpec(name="C4", channels=3, stride=16),))),
    ],
)
def test_each_changed_field_is_named(root: Path, field: str, value: Any, kit: Any) -> None:
    """Fault F8."""
    before = kit.files(root)
    message = rf"other inputs\. {field}: .* in the store, .* now"
    with pytest.raises(StoreMismatchError, match=message):
        kit.open_writer(root, **{field: value})
    assert kit.files(root) == before


def test_other_folders_are_left_alone(tmp_path: Path, kit: Any) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(StoreError, match="is not a feature store"):
        kit.open_writer(tmp_path)
    with pytest.raises(StoreError, match=r"is not a feature store: it has no manifest.json"):
        FeatureStore.open(tmp_path)
    with pytest.raises(StoreError, match=r"photo.jpg is not a feature store: it is a file; expec"):
        FeatureStore.open(tmp_path / "photo.jpg")
    assert (tmp_path / "photo.jpg").exists()


def test_wrong_questions(root: Path) -> None:
    store = FeatureStore.open(root)
    with pytest.raises(MissingFeatureError, match="holds views base, hflip, not 'crop'"):
        store.read(0, "crop")
    with pytest.raises(MissingFeatureError, match="has rows 0 to 4, got row 5"):
        store.read(5, "base")
    with pytest.raises(MissingFeatureError, match="holds levels C4, C5, not 'C3'"):
        store.read(0, "base", ["C3"])


def test_wrong_maps_are_refused(tmp_path: Path, kit: Any) -> None:
    writer = kit.open_writer(tmp_path / "s.zarr")
    block = writer.blocks[0]
    maps = kit.features_of(block)
    with pytest.raises(StoreError, match=r"block base-b96x128-000000: expected maps"):
        writer.write(block, {"C4": maps["C4"]})
    maps["C5"][1, 0, 0, 0] = float("nan")
    with pytest.raises(CodecError, match=r"image_1.jpg: level C5 holds nan"):
        writer.write(block, maps)
    assert block in writer.missing_blocks()


def test_a_disk_too_small_is_known_before_anything_is_written(tmp_path: Path, kit: Any) -> None:
    giant = FeatureSpec((LevelSpec(name="C4", channels=10**12, stride=16),))
    with pytest.raises(StoreError, match=r"GB are still to be written, the disk has .* --codec"):
        kit.open_writer(tmp_path / "s.zarr", spec=giant)
    assert not (tmp_path / "s.zarr").exists()


def test_planned_bytes_are_what_is_written(tmp_path: Path, kit: Any) -> None:
    writer = kit.open_writer(tmp_path / "s.zarr", block_size=1)
    planned = writer.planned_nbytes(writer.blocks)
    for block in writer.blocks:
        writer.write(block, kit.features_of(block))
    per_shard_index_checksum = 4 * len(writer.blocks) * len(kit.spec)
    assert writer.nbytes_written == planned + per_shard_index_checksum
    assert FeatureStore.open(writer.root).nbytes == writer.nbytes_written


def test_description(root: Path) -> None:
    description = describe_store(root)
    assert json.loads(json.dumps(description)) == description
    assert description["boxes_per_class"] == {"class 2": 1, "class 5": 1, "class 90": 1}
    assert description["buckets"] == {"96x128": 4, "128x96": 1}
    assert description["blocks_missing"] == 0
    assert description["skipped"] == [["bad.jpg", "truncated"]]

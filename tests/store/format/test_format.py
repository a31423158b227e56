"""The store as others see it: plain zarr v3, the same through every reader, the same next year."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from zarr.storage import LocalStore, MemoryStore, ZipStore

from cachedet.errors import StoreError
from cachedet.store.codecs.registry import CODECS
from cachedet.store.files.source import LocalFiles, ZarrStorage
from cachedet.store.format.layout import metadata_keys
from cachedet.store.format.manifest import FORMAT_VERSION
from cachedet.store.format.plan import StorePlan
from cachedet.store.reader import FeatureStore

NAMES = [*CODECS, "pca2+int8", "snr12"]
FIXTURE = Path(__file__).parents[1] / "fixtures" / f"format-{FORMAT_VERSION}.zip"


@pytest.fixture(params=NAMES)
def filled(request: pytest.FixtureRequest, tmp_path: Path, kit: Any) -> Path:
    root: Path = kit.fill(tmp_path / "s.zarr", kit.noise_of, codec=request.param)
    return root


def encoded_by_array(root: Path) -> dict[str, list[np.ndarray]]:
    """What cachedet reads, slot by slot, by path of the array."""
    store, plan = FeatureStore.open(root), StorePlan.load(LocalFiles(root))
    slots: dict[str, list[np.ndarray]] = {}
    for block in plan.blocks:
        encoded = store.make_buffers(block.bucket, len(block.rows))
        store.read_encoded([(row, block.view) for row in block.rows], out=encoded)
        for level, parts in encoded.arrays.items():
            for name, array in parts.items():
                slots.setdefault(f"{block.group}/{level}/{name}", []).extend(array)
    return slots


def test_zarr_alone_reads_the_same(filled: Path) -> None:
    group = zarr.open_group(filled, mode="r")
    for path, slots in encoded_by_array(filled).items():
        array = group[path]
        assert isinstance(array, zarr.Array)
        assert array.chunks == (1, *slots[0].shape)
        assert array.shards == (2, *slots[0].shape)
        np.testing.assert_array_equal(np.asarray(array[:]), np.stack(slots))


def test_tensorstore_reads_the_same(filled: Path) -> None:
    for path, slots in encoded_by_array(filled).items():
        array = tensorstore.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(filled / path)}},
            open=True,
        ).result()
        np.testing.assert_array_equal(array.read().result(), np.stack(slots))


def zip_of(root: Path) -> Path:
    return Path(shutil.make_archive(str(root), "zip", root))


OPENERS: dict[str, Callable[[Path], FeatureStore]] = {
    "local": FeatureStore.open,
    "zarr local": lambda root: FeatureStore.open(LocalStore(root, read_only=True)),
    "zip file": lambda root: FeatureStore.open(ZipStore(zip_of(root), mode="r")),
    "url": lambda root: FeatureStore.open(f"file://{root}"),
}


@pytest.mark.parametrize("opener", OPENERS)
def test_every_way_to_read_gives_the_same(filled: Path, opener: str) -> None:
    """Also in a process that the open store is sent to."""
    local, other = FeatureStore.open(filled), OPENERS[opener](filled)
    for again in (other, pickle.loads(pickle.dumps(other))):
        assert again.manifest == local.manifest
        assert again.nbytes == local.nbytes
        for row in (0, 3, 1):
            for level, maps in local.read(row, "hflip").items():
                torch.testing.assert_close(again.read(row, "hflip")[level], maps, rtol=0, atol=0)


def test_buffers_are_read_into_again(filled: Path) -> None:
    store = FeatureStore.open(filled)
    bucket = store.bucket_of(0, "base")
    buffers, fresh = store.make_buffers(bucket, 2), store.make_buffers(bucket, 2)
    store.read_encoded([(0, "base"), (1, "base")], out=buffers)
    store.read_encoded([(3, "base"), (4, "base")], out=buffers)
    store.read_encoded([(3, "base"), (4, "base")], out=fresh)
    for level, parts in fresh.arrays.items():
        for name, array in parts.items():
            np.testing.assert_array_equal(buffers.arrays[level][name], array)
    message = r"are of bucket \(96, 128\), image \(2, 'base'\) of \(128"
    with pytest.raises(ValueError, match=message):
        store.read_encoded([(0, "base"), (2, "base")], out=buffers)
    with pytest.raises(ValueError, match="buffers are for 2 images, 1 are read"):
        store.read_encoded([(3, "base")], out=buffers)


def test_other_storages_say_what_is_missing() -> None:
    with pytest.raises(StoreError, match="is not a feature store: it has no manifest.json"):
        FeatureStore.open(MemoryStore())
    with pytest.raises(StoreError, match="cannot open nowhere://x: unknown kind of place"):
        FeatureStore.open("nowhere://x")
    storage = ZarrStorage(MemoryStore())
    assert storage.names("commits") == set()


def test_all_metadata_is_covered_by_the_digest(root: Path) -> None:
    plan = StorePlan.load(LocalFiles(root))
    keys = metadata_keys(plan.blocks, plan.layout)
    assert {str(path.relative_to(root)) for path in root.rglob("zarr.json")} == set(keys)


def test_stores_written_once_are_read_for_ever(tmp_path: Path) -> None:
    shutil.unpack_archive(FIXTURE, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*NAMES, "added"])
    for name in (*NAMES, "added"):
        store = FeatureStore.open(tmp_path / name)
        store.require_complete()
        assert store.annotations.crowd.tolist() == [False, True]
        with np.load(tmp_path / name / "expected.npz") as expected:
            for key in expected.files:
                row, level = key.split("/")
                maps = store.read(int(row), "base")[level].numpy()
                np.testing.assert_allclose(maps, expected[key], rtol=1e-5, atol=1e-6)

"""The store as others see it: plain zarr v3, the same through every reader, the same next year."""

from __future__ import annotations

import shutil
import zipfile
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
from cachedet.structures import Annotations

NAMES = [*CODECS, "pca2+int8", "snr12"]
FIXTURE = Path(__file__).parents[1] / "fixtures" / f"format-{FORMAT_VERSION}.zip"


@pytest.fixture(params=NAMES)
def filled(
    request: pytest.FixtureRequest, tmp_path: Path, annotations: Annotations, kit: Any
) -> Path:
    root: Path = kit.fill(tmp_path / "s.zarr", annotations, kit.noise_of, codec=request.param)
    return root


def encoded_by_array(root: Path) -> dict[str, list[np.ndarray]]:
    """What cachedet reads, slot by slot, by path of the array."""
    store, plan = FeatureStore.open(root), StorePlan.load(LocalFiles(root))
    found: dict[str, list[np.ndarray]] = {}
    for block in plan.blocks:
        for row in block.rows:
            for level, parts in store.read_encoded([(row, block.view)]).arrays.items():
                for name, array in parts.items():
                    found.setdefault(f"{block.group}/{level}/{name}", []).append(array[0])
    return found


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
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(root))
    return path


OPENERS: dict[str, Callable[[Path], FeatureStore]] = {
    "two threads": lambda root: FeatureStore.open(root, threads=2),
    "one open file": lambda root: FeatureStore.open(root, most_files=1),
    "zarr local": lambda root: FeatureStore.open(LocalStore(root, read_only=True)),
    "zip file": lambda root: FeatureStore.open(ZipStore(zip_of(root), mode="r")),
    "url": lambda root: FeatureStore.open(f"file://{root}"),
}


@pytest.mark.parametrize("opener", OPENERS)
def test_every_way_to_read_gives_the_same(filled: Path, opener: str) -> None:
    local, other = FeatureStore.open(filled), OPENERS[opener](filled)
    assert other.manifest == local.manifest
    keys = [(0, "hflip"), (3, "hflip"), (1, "hflip")]
    batch = other.read_batch(keys, ["C4", "C5"])
    for place, key in enumerate(keys):
        for level, maps in local.read(*key).items():
            torch.testing.assert_close(other.read(*key)[level], maps, rtol=0, atol=0)
            torch.testing.assert_close(batch[level][place], maps, rtol=1e-6, atol=1e-6)


def test_buffers_are_read_into_again(filled: Path) -> None:
    store = FeatureStore.open(filled)
    bucket = store.geometry(0, "base").padded_hw
    buffers = store.make_buffers(bucket, 2)
    first = store.decode(store.read_encoded([(0, "base"), (1, "base")], out=buffers))
    second = store.decode(store.read_encoded([(3, "base"), (4, "base")], out=buffers))
    for level in first:
        torch.testing.assert_close(first[level][1], store.read(1, "base")[level])
        torch.testing.assert_close(second[level][0], store.read(3, "base")[level])
    with pytest.raises(ValueError, match="must share one bucket"):
        store.read_encoded([(0, "base"), (2, "base")])
    with pytest.raises(ValueError, match="buffers are of bucket .*, the images of"):
        store.read_encoded([(2, "base")], out=buffers)
    with pytest.raises(ValueError, match="buffers are for 2 images, 1 are read"):
        store.read_encoded([(3, "base")], out=buffers)  # else the second would be an older image
    with pytest.raises(ValueError, match="buffers are of levels C5, not 'C4'"):
        store.read_encoded([(3, "base")], out=store.make_buffers(bucket, 1, ["C5"]))


def test_other_storages_say_what_is_missing() -> None:
    with pytest.raises(StoreError, match="is not a feature store: it has no manifest.json"):
        FeatureStore.open(MemoryStore())
    with pytest.raises(StoreError, match="cannot open nowhere://x: Protocol not known"):
        FeatureStore.open("nowhere://x")
    storage = ZarrStorage(MemoryStore())
    assert storage.names("commits") == set()


def test_all_metadata_is_covered_by_the_digest(root: Path) -> None:
    plan = StorePlan.load(LocalFiles(root))
    keys = metadata_keys(plan.blocks, plan.layout)
    assert {str(path.relative_to(root)) for path in root.rglob("zarr.json")} == set(keys)


def test_stores_written_once_are_read_for_ever(tmp_path: Path) -> None:
    shutil.unpack_archive(FIXTURE, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    for name in NAMES:
        store = FeatureStore.open(tmp_path / name)
        store.require_complete()
        assert store.targets(2, "base").crowd.tolist() == [True]
        with np.load(tmp_path / name / "expected.npz") as expected:
            for key in expected.files:
                row, level = key.split("/")
                maps = store.read(int(row), "base")[level].numpy()
                np.testing.assert_allclose(maps, expected[key], rtol=1e-5, atol=1e-6)

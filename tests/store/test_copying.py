"""Stores copied to other places: the same bytes, verified, to be gone on with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cachedet.cli import app
from cachedet.errors import StoreError, StoreMismatchError
from cachedet.store.copying import copy_store
from cachedet.store.files.bucket import Bucket
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.layout import commit_key
from cachedet.store.format.plan import StorePlan
from cachedet.store.reader import FeatureStore
from cachedet.store.truth import replace_truth
from cachedet.store.verify import verify_store

Kit = Any


def content_of(root: Path, kit: Kit) -> dict[str, bytes]:
    """All but locks."""
    return {key: held for key, held in kit.files(root).items() if not key.startswith("leases/")}


def memory_bucket() -> Bucket:
    store = pytest.importorskip("obstore.store", reason="pip install 'cachedet[remote]'")
    return Bucket(store.MemoryStore(), location="memory://s.zarr")


@pytest.mark.parametrize("codec", ["fp16", "snr12"])
def test_to_a_bucket_and_back_nothing_changes(kit: Kit, tmp_path: Path, codec: str) -> None:
    root, bucket, back = tmp_path / "s.zarr", memory_bucket(), tmp_path / "back.zarr"
    kit.fill(root, kit.noise_of, codec=codec)
    there = copy_store(root, bucket)
    assert (there.copied, there.held, there.is_whole) == (there.blocks, 0, True)
    assert verify_store(bucket, deep=True).is_good
    assert copy_store(bucket, back).nbytes == there.nbytes
    assert content_of(back, kit) == content_of(root, kit)
    again = copy_store(bucket, back)
    assert (again.copied, again.held, again.nbytes) == (0, again.blocks, 0)


def test_a_copy_goes_on_where_it_was_broken_off(kit: Kit, root: Path, tmp_path: Path) -> None:
    kit.fill(root, kit.noise_of)
    whole = content_of(root, kit)
    copy = tmp_path / "copy.zarr"
    copy_store(root, copy)
    lost = [key for key in whole if key.startswith("commits/")][::2]
    for key in lost:
        (copy / key).unlink()
    assert not verify_store(copy, deep=False).is_good
    report = copy_store(root, copy)
    assert (report.copied, report.is_whole) == (len(lost), True)
    assert content_of(copy, kit) == whole


def test_what_is_missing_or_damaged_stays_behind(kit: Kit, root: Path, tmp_path: Path) -> None:
    kit.fill(root, kit.noise_of)
    plan = StorePlan.load(LocalFiles(root))
    first, second = plan.needed[:2]
    (root / commit_key(first)).unlink()
    damaged = root / next(iter(plan.layout.shard_keys(second).values()))
    content = bytearray(damaged.read_bytes())
    content[0] ^= 1
    damaged.write_bytes(content)
    report = copy_store(root, tmp_path / "copy.zarr")
    assert not report.is_whole
    assert report.copied == report.blocks - 2
    assert report.missing == (first.name,)
    assert report.bad == (f"{damaged}: the content is not what was committed",)
    shown = CliRunner().invoke(app, ["copy", str(root), str(tmp_path / "copy.zarr")])
    assert shown.exit_code == 1
    assert "the source lacks 1; 1 are damaged there" in " ".join(shown.output.split())


def test_other_stores_are_refused(kit: Kit, root: Path, tmp_path: Path, annotations: Any) -> None:
    kit.fill(root, kit.noise_of)
    copy = tmp_path / "copy.zarr"
    copy_store(root, copy)
    other = tmp_path / "other.zarr"
    kit.fill(other, kit.noise_of, codec="fp16", image_size=64)
    with pytest.raises(StoreMismatchError, match="holds another store than .*image_size"):
        copy_store(other, copy)
    store = FeatureStore.open(root)
    moved = replace(annotations, boxes=annotations.boxes + 1)
    replace_truth(root, store.manifest, moved)
    with pytest.raises(StoreMismatchError, match="or the same as it was before"):
        copy_store(root, copy)
    with pytest.raises(StoreError, match="would be copied onto itself"):
        copy_store(root, root / ".." / root.name)
    for inside in (root / "copy.zarr", root / ".." / root.name / "base" / "copy.zarr"):
        with pytest.raises(StoreError, match=f"lies inside of {root}, which is copied; name a pl"):
            copy_store(root, inside)
    assert not (root / "copy.zarr").exists()
    copy_store(root, root.with_name(f"{root.name}-2"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "photo.jpg").write_bytes(b"1")
    with pytest.raises(StoreError, match="is not a feature store"):
        copy_store(root, mine)
    assert [path.name for path in mine.iterdir()] == ["photo.jpg"]


def test_a_copy_reads_as_the_store_does(kit: Kit, root: Path, tmp_path: Path) -> None:
    kit.fill(root, kit.noise_of)
    shown = CliRunner().invoke(app, ["copy", str(root), str(tmp_path / "c.zarr"), "--json"])
    assert shown.exit_code == 0, shown.output
    ours, its = FeatureStore.open(root), FeatureStore.open(tmp_path / "c.zarr")
    for level, maps in ours.read(0, "base").items():
        torch.testing.assert_close(its.read(0, "base")[level], maps, rtol=0, atol=0)

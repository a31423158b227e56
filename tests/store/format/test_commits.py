"""Commit records: whole and of this store, or the store does not open."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cachedet.errors import CorruptBlockError, MissingFeatureError
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.commits import CommitRecord
from cachedet.store.format.manifest import digest_json
from cachedet.store.format.plan import StorePlan
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store

RECORD = "commits/base-b96x128-000000.json"


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a record and give it a checksum that fits."""
    body = json.loads(path.read_text())
    del body["checksum"]
    change(body)
    path.write_text(json.dumps({**body, "checksum": digest_json(body)}))


def test_a_record_keeps_the_end_of_every_chunk(root: Path) -> None:
    content = (root / RECORD).read_bytes()
    record = CommitRecord.from_bytes(content, where=RECORD)
    assert record.to_bytes() == content
    shard = (root / "base/b96x128/C4/values/c/0/0/0/0").read_bytes()
    packed = 2 * 3 * 6 * 8 + 4
    ends = [shard[packed - 4 : packed], shard[2 * packed - 4 : 2 * packed]]
    assert [record.shards["C4/values"].checksum_of(slot) for slot in (0, 1)] == ends
    assert json.loads(content)["shards"]["C4/values"]["chunk_checksums"] == b"".join(ends).hex()


FOREIGN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "block": (lambda body: body.update(block="base-b96x128-000001"), "the record of block base"),
    "fingerprint": (lambda body: body.update(fingerprint="0" * 64), "of a store with another back"),
    "images": (lambda body: body["image_ids"].reverse(), "other images than images.npz has"),
    "shards": (lambda body: body["shards"].pop("C5/values"), "lists C4/values instead of C4/val"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_record_keeps_the_store_closed_until_it_is_withdrawn(
    root: Path, kind: str, kit: Any
) -> None:
    whole = kit.files(root)
    change, message = FOREIGN[kind]
    rewrite(root / RECORD, change)
    with pytest.raises(CorruptBlockError, match=rf"{RECORD} belongs to another .*: it .*{message}"):
        FeatureStore.open(root)
    writer = kit.open_writer(root)
    assert [block.name for block in writer.missing_blocks()] == ["base-b96x128-000000"]
    (bad,) = verify_store(root, deep=False).bad
    assert bad.withdrawn
    assert re.search(message, bad.reason)
    with pytest.raises(MissingFeatureError):
        FeatureStore.open(root).read(0, "base")
    kit.fill(root)
    assert kit.files(root) == whole


SHARD = ("shards", "C4/values")
DAMAGED: list[tuple[tuple[str, ...], object, str]] = [
    ((*SHARD, "chunk_checksums"), "00" * 4, "4 bytes of chunk checksums for 2 images"),
    ((*SHARD, "chunk_checksums"), None, "'chunk_checksums'"),
    ((*SHARD, "chunk_checksums"), "zz" * 8, "non-hexadecimal"),
    ((*SHARD, "nbytes"), "596", "nbytes must be a whole number"),
    (("quality", "C4", "noise"), -1.0, "quality must be numbers from 0"),
    (("image_ids",), 7, "not iterable"),
]


@pytest.mark.parametrize(("keys", "value", "message"), DAMAGED)
def test_a_damaged_record(root: Path, keys: tuple[str, ...], value: object, message: str) -> None:
    """`None` leaves the field out."""

    def change(body: dict[str, Any]) -> None:
        for key in keys[:-1]:
            body = body[key]
        body.pop(keys[-1])
        if value is not None:
            body[keys[-1]] = value

    rewrite(root / RECORD, change)
    with pytest.raises(CorruptBlockError, match=rf"{RECORD}: .*damaged.*{message}"):
        FeatureStore.open(root)


def test_a_record_that_is_a_folder(root: Path, kit: Any) -> None:
    whole = kit.files(root)
    (root / RECORD).unlink()
    (root / RECORD).mkdir()
    message = rf"{RECORD}: the file cannot be opened \(it is a fol"
    with pytest.raises(CorruptBlockError, match=message):
        FeatureStore.open(root)
    assert len(kit.open_writer(root).missing_blocks()) == 1
    assert [bad.withdrawn for bad in verify_store(root, deep=False).bad] == [True]
    (root / f"{RECORD}.bad").rmdir()
    kit.fill(root)
    assert kit.files(root) == whole


def test_sums_beyond_float32_are_numbers_too(tmp_path: Path, kit: Any) -> None:
    root = kit.fill(
        tmp_path / "s.zarr",
        lambda block: {k: maps * 1e30 for k, maps in kit.noise_of(block).items()},
        codec="fp32",
    )
    assert "Infinity" not in (root / RECORD).read_text()
    assert 1e60 < FeatureStore.open(root).quality["C4"].signal < 1e65


class Vanishing(LocalFiles):
    """A writer takes a record away between the listing and the reading."""

    def names(self, folder: str) -> set[str]:
        names = super().names(folder)
        (self.root / RECORD).unlink()
        return names


def test_a_record_that_vanishes_while_the_store_is_opened(root: Path) -> None:
    store = FeatureStore(StorePlan.load(Vanishing(root)))
    assert [block.name for block in store.missing_blocks()] == ["base-b96x128-000000"]
    assert float(store.read(3, "base")["C4"].max()) == 3.0

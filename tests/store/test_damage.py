"""Faults F4, F5 and F11: damaged and hostile stores are errors, through every reader."""

from __future__ import annotations

import io
import json
import resource
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from numcodecs.zstd import Zstd
from zarr.storage import LocalStore

from cachedet.errors import CachedetError, CorruptBlockError, MissingFeatureError, StoreError
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.commits import ShardRecord, digest_of, read_record
from cachedet.store.format.layout import commit_key, shard_key
from cachedet.store.format.manifest import (
    image_arrays,
    images_digest,
    truth_arrays,
    truth_digest,
)
from cachedet.store.format.plan import StorePlan
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store
from cachedet.structures import Annotations

CODECS = ["fp32", "fp16", "bf16", "int8", "int8+zstd", "int4", "pca2+int8", "snr12"]
READERS: dict[str, Callable[[Path], FeatureStore]] = {
    "local": FeatureStore.open,
    "zarr storage": lambda root: FeatureStore.open(LocalStore(root, read_only=True)),
}


def read_everything(store: FeatureStore) -> None:
    for view in store.manifest.views:
        for row in range(len(store)):
            store.read(row, view)


def flip(position: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[position] ^= 4
        path.write_bytes(bytes(content))

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "value": flip(3),
    "index": flip(-6),
    "checksum": flip(-1),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_shard_is_an_error_and_is_repaired(
    root: Path, damage: str, reader: str, kit: Any
) -> None:
    path = root / "base/b96x128/C4/values/c/0/0/0/0"
    whole = kit.files(root)
    DAMAGES[damage](path)
    message = r"C4/values/c/0/0/0/0 \(block .*verify --deep STORE"
    with pytest.raises(CorruptBlockError, match=message):
        READERS[reader](root).read(0, "base")
    report = verify_store(root, deep=True)
    assert [bad.path for bad in report.bad] == [str(path)]
    assert report.to_json()["ok"] is False
    with pytest.raises(MissingFeatureError):  # withdrawn: no reader sees it any more
        READERS[reader](root).read(0, "base")
    writer = kit.open_writer(root)
    assert [block.name for block in writer.missing_blocks()] == ["base-b96x128-000000"]
    kit.fill(root)
    assert verify_store(root, deep=True).is_good
    assert kit.files(root) == whole


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("reader", READERS)
def test_any_flipped_bit_of_any_file_is_noticed_or_harmless(
    tmp_path: Path, annotations: Annotations, codec: str, reader: str, kit: Any
) -> None:
    """Never other features or boxes than were written; harmless are a zip file's own dates."""
    root = kit.fill(tmp_path / "s.zarr", kit.noise_of, codec=codec)
    expected = {key: FeatureStore.open(root).read(*key) for key in [(0, "base"), (2, "hflip")]}
    rng = np.random.default_rng(0)
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size)
    noticed = 0
    for path in files:
        content = path.read_bytes()
        position, bit = int(rng.integers(len(content))), int(rng.integers(8))
        changed = bytearray(content)
        changed[position] ^= 1 << bit
        path.write_bytes(bytes(changed))
        try:
            store = READERS[reader](root)
            read_everything(store)
        except CachedetError:
            noticed += 1
        else:
            assert path.suffix == ".npz", f"{path}: {position}, bit {bit}"
            assert truth_digest(store.annotations) == truth_digest(annotations)
            for key, features in expected.items():
                for level, maps in store.read(*key).items():
                    np.testing.assert_array_equal(maps.numpy(), features[level].numpy())
        path.write_bytes(content)
    assert noticed >= len(files) - 2


def test_a_codec_that_would_learn_something_else_is_not_replaced(
    tmp_path: Path, kit: Any, forger: Any
) -> None:
    root = kit.fill(tmp_path / "s.zarr", kit.noise_of, codec="snr12")
    state = (root / "codec.npz").read_bytes()
    (root / "codec.npz").unlink()
    forger.manifest(root, codec_digest="0" * 64)
    with pytest.raises(StoreError, match=r"codec.npz is missing or damaged"):
        kit.open_writer(root, codec="snr12")
    (root / "codec.npz").write_bytes(state)
    with pytest.raises(StoreError, match=r"is not the one this store was made with; copy it from"):
        FeatureStore.open(root)


@pytest.mark.parametrize("share", [0.1, 0.35, 0.6, 0.9])
def test_a_flipped_bit_in_the_manifest(root: Path, share: float, kit: Any) -> None:
    path = root / "manifest.json"
    kit.flip_bit(path, int(share * path.stat().st_size))
    with pytest.raises(StoreError, match="is damaged|was altered|not a manifest|store format"):
        FeatureStore.open(root)


@pytest.mark.parametrize("version", [4, 6, None, "5"])
def test_a_store_of_another_format_is_refused_and_stays(
    root: Path, version: object, kit: Any, forger: Any
) -> None:
    values = json.loads((root / "manifest.json").read_text())
    forger.write_manifest(root, values | {"format_version": version})
    before = kit.files(root)
    message = f"has store format {version!r}, cachedet .* reads and writes format 5; extract again"
    for act in (FeatureStore.open, lambda root: kit.open_writer(root)):
        with pytest.raises(StoreError, match=message):
            act(root)
    assert kit.files(root) == before


@pytest.fixture
def bounded_memory() -> Any:
    """No more than 2 GB above what is in use: a bomb fails instead of filling the machine."""
    status = Path("/proc/self/statm").read_text().split()
    used = int(status[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def forge_shard(root: Path, content: bytes, *, part: str, ends: bytes = bytes(8)) -> None:
    """Replace a shard and make its commit record fit, as a hostile author of a store would."""
    plan = StorePlan.load(LocalFiles(root))
    block = plan.blocks[0]
    array = f"C4/{part}"
    key = shard_key(block, array, plan.layout.parts(block.bucket)[array])
    (root / key).write_bytes(content)
    record = read_record(plan.source, block)
    digest = digest_of(plan.source.open(key))
    forged = ShardRecord(nbytes=len(content), digest=digest, chunk_checksums=ends)
    record = replace(record, shards={**record.shards, array: forged})
    (root / commit_key(block)).write_bytes(record.to_bytes())


def index_of(entries: list[tuple[int, int]]) -> bytes:
    content = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    return content + google_crc32c.value(content).to_bytes(4, "little")


HUGE = 2**63
RAW = 2 * 3 * 6 * 8 + 4  # bytes of a packed fp16 map of C4
INDICES = {
    "outside the file": ([(0, RAW), (HUGE, RAW)], "do not fill the file one after the other"),
    "beyond the end": ([(0, RAW), (RAW + 1, RAW)], "do not fill the file one after the other"),
    "huge": ([(0, RAW), (RAW, HUGE)], "chunks that are not of 292 bytes"),
    "overflow": ([(0, RAW), (2**64 - 8, RAW)], "do not fill the file one after the other"),
    "overlap": ([(0, RAW), (RAW - 1, RAW)], "do not fill the file one after the other"),
    "twice the same": ([(0, RAW), (0, RAW)], "do not fill the file one after the other"),
    "another order": ([(RAW, RAW), (0, RAW)], "do not fill the file one after the other"),
    "hole": ([(0, RAW), (2**64 - 1, 2**64 - 1)], "never written"),
}


@pytest.mark.parametrize("kind", INDICES)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.usefixtures("bounded_memory")
def test_hostile_indices(root: Path, kind: str, reader: str) -> None:
    entries, message = INDICES[kind]
    forge_shard(root, bytes(2 * RAW) + index_of(entries), part="values")
    with pytest.raises(CorruptBlockError, match=message):
        READERS[reader](root).read(1, "base")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.usefixtures("bounded_memory")
def test_zstd_bombs(tmp_path: Path, reader: str, kit: Any) -> None:
    root = kit.fill(tmp_path / "s.zarr", kit.noise_of, codec="int8+zstd")
    honest = Zstd(level=1, checksum=True).encode(bytes(3 * 6 * 8))
    bombs = {
        "3000000 bytes, not 144": Zstd(level=19, checksum=True).encode(bytes(3_000_000)),
        "None bytes, not 144": Zstd(level=1, checksum=False).encode(bytes(3 * 6 * 8)),
        "cannot be decompressed": honest[:6] + b"\xff" * (len(honest) - 6),
    }
    for message, bomb in bombs.items():
        content = bytes(honest) + bytes(bomb)
        entries = [(0, len(honest)), (len(honest), len(bomb))]
        shard = content + index_of(entries)
        forge_shard(root, shard, part="codes", ends=bytes(honest[-4:]) + bytes(bomb[-4:]))
        with pytest.raises(CorruptBlockError, match=message):
            READERS[reader](root).read(1, "base")


@pytest.mark.usefixtures("bounded_memory")
def test_an_array_file_that_claims_a_huge_shape(root: Path, kit: Any) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (100000000000,), }"
    padded = header.ljust(117) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        stored = io.BytesIO()
        with zipfile.ZipFile(stored, "w", compression) as archive:
            archive.writestr("boxes.npy", npy)
        kit.truth(root).write_bytes(stored.getvalue())
        message = r"truth-[0-9a-f]{16}.npz is missing or damaged: entry boxes.npy"
        with pytest.raises(StoreError, match=message):
            FeatureStore.open(root)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("offsets", np.array([0, 5, 2, 2, 2, 3]), "offsets must rise"),
        ("labels", np.array([0, 3, 1]), "labels must be 0 to 2"),
        ("sizes_hw", np.full((5, 2), 10**9), "sizes_hw must be 1 to"),
        ("boxes", np.zeros((3, 5)), r"boxes is float64 \(3, 5\), not float64 \(3, 4\)"),
    ],
)
def test_hostile_annotations(
    root: Path, name: str, value: np.ndarray, message: str, kit: Any, forger: Any
) -> None:
    forged = replace(kit.annotations, **{name: value})
    contents = kit.contents_of(kit.annotations)
    images: dict[str, Any] = image_arrays(forged, contents)
    truth: dict[str, Any] = truth_arrays(forged)
    np.savez(root / "images.npz", **images)
    forger.manifest(
        root,
        images_digest=images_digest(forged, contents),
        truth_digest=truth_digest(forged),
    )
    np.savez(kit.truth(root), **truth)
    with pytest.raises(StoreError, match=message):
        FeatureStore.open(root)


def test_a_symlink_loop(root: Path) -> None:
    path = root / "base/b96x128/C4/values/c/0/0/0/0"
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(CorruptBlockError, match="cannot be opened"):
        FeatureStore.open(root).read(0, "base")
    report = verify_store(root, deep=False)
    assert "cannot be opened" in report.bad[0].reason

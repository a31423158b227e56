"""A reader written from docs/disk-format.md alone: it shares no code with cachedet."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from numcodecs.zstd import Zstd

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format-5.zip"
IDENTITY = (
    "backbone", "weights_digest", "preprocessing", "spec", "image_size", "views", "codec",
    "block_size", "batch_size", "images_digest", "truth_digest", "categories",
)  # fmt: skip
IMAGES = ("image_ids", "file_names", "sizes_hw", "contents")
TRUTH = ("offsets", "boxes", "labels", "crowd", "areas")
GROUP = "base/b96x128"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fixture")
    shutil.unpack_archive(FIXTURE, root)
    return root


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_arrays(arrays: dict[str, np.ndarray], names: Any, *, named: bool) -> Any:
    sha256 = hashlib.sha256()
    for name in names:
        prefix = f"{name} " if named else ""
        sha256.update(f"{prefix}{arrays[name].dtype} {arrays[name].shape}\n".encode())
        sha256.update(arrays[name].tobytes())
    return sha256


def chunk(root: Path, array: str, row: int, block_size: int) -> bytes:
    """The bytes of one image's chunk, by the index at the end of its shard."""
    content = shard_file(root, array, row // block_size).read_bytes()
    return chunks(content, block_size)[row % block_size]


def shard_file(root: Path, array: str, number: int) -> Path:
    path = root / GROUP / array / "c" / str(number)
    while path.is_dir():
        path /= "0"
    return path


def chunks(shard: bytes, block_size: int) -> list[bytes]:
    """Those of the slots in use: one after the other, and nothing else before the index."""
    start = len(shard) - 16 * block_size - 4
    entries = list(struct.iter_unpack("<QQ", shard[start:-4]))
    used = [entry for entry in entries if entry != (2**64 - 1, 2**64 - 1)]
    assert used == entries[: len(used)]
    contents, end = [], 0
    for offset, nbytes in used:
        assert offset == end
        end += nbytes
        contents.append(shard[offset:end])
    assert end == start
    return contents


def nibbles(content: bytes, channels: int, cells: int) -> np.ndarray:
    packed = np.frombuffer(content, np.uint8).reshape(channels, -1)
    pairs = np.stack([packed & 15, packed >> 4], axis=2).reshape(channels, -1)
    return pairs[:, :cells].astype(np.float32) - 8


class Page:
    """Section 6 of the page for one map."""

    def __init__(
        self, root: Path, manifest: dict[str, Any], level: dict[str, Any], row: int
    ) -> None:
        self.codec, self.name, self.channels = manifest["codec"], level["name"], level["channels"]
        self.hw = 96 // level["stride"], 128 // level["stride"]
        self.cells = self.hw[0] * self.hw[1]
        self._where = root, row, manifest["block_size"]
        state = root / "codec.npz"
        self.state = dict(np.load(state)) if state.exists() else {}

    def part(self, name: str, *, zstd: bool) -> bytes:
        root, row, block_size = self._where
        content = chunk(root, f"{self.name}/{name}", row, block_size)
        return bytes(Zstd().decode(content)) if zstd else content[:-4]

    def maps(self, name: str, dtype: Any, *, zstd: bool = False) -> np.ndarray:
        """Channels by cells."""
        values = np.frombuffer(self.part(name, zstd=zstd), dtype)
        if not zstd:
            return values.reshape(self.cells, -1).T
        return values.reshape(-1, self.cells)

    def value(self) -> np.ndarray:
        kind = self.codec.removesuffix("+zstd")
        reader = {"fp32": self.floats, "fp16": self.floats, "bf16": self.bf16}.get(kind)
        if reader is None:
            by_start = {"int8": self.int8, "int4": self.int4, "pca": self.pca, "snr": self.snr}
            reader = next(read for start, read in by_start.items() if kind.startswith(start))
        return reader().reshape(self.channels, *self.hw)

    def floats(self) -> np.ndarray:
        dtype = {"fp32": "<f4", "fp16": "<f2"}[self.codec]
        return self.maps("values", dtype).astype(np.float32)

    def bf16(self) -> np.ndarray:
        bits = self.maps("values", "<u2").astype(np.uint32) << 16
        return bits.view(np.float32)

    def int8(self) -> np.ndarray:
        dtype = np.uint8 if self.state[f"{self.name}/nonnegative"] else np.int8
        codes = self.maps("codes", dtype, zstd=self.codec.endswith("zstd"))
        return codes * np.frombuffer(self.part("scale", zstd=False), "<f4")[:, None]

    def int4(self) -> np.ndarray:
        scale = np.frombuffer(self.part("scale", zstd=False), "<f2").astype(np.float32)
        spread = np.repeat(scale.reshape(self.channels, -1), 64, axis=1)[:, : self.cells]
        content = self.part("nibbles", zstd=self.codec.endswith("zstd"))
        return nibbles(content, self.channels, self.cells) * spread

    def rotate_back(self, y: np.ndarray) -> np.ndarray:
        basis, mean = self.state[f"{self.name}/basis"], self.state[f"{self.name}/mean"]
        return np.asarray(basis.T @ y + mean[:, None])

    def pca(self) -> np.ndarray:
        scale = np.frombuffer(self.part("scale", zstd=False), "<f4")
        codes = np.frombuffer(self.part("codes", zstd=True), np.int8).reshape(len(scale), -1)
        return self.rotate_back(codes * scale[:, None])

    def snr(self) -> np.ndarray:
        wide = int(self.state[f"{self.name}/wide"])
        narrow = len(self.state[f"{self.name}/basis"]) - wide
        rows = []
        if wide:
            codes = np.frombuffer(self.part("codes", zstd=True), np.int8)
            rows.append(codes.reshape(wide, -1).astype(np.float32))
        if narrow:
            rows.append(nibbles(self.part("nibbles", zstd=True), narrow, self.cells))
        return self.rotate_back(np.concatenate(rows) * self.state[f"{self.name}/step"])


CODECS = ["fp32", "fp16", "bf16", "int8", "int8+zstd", "int4", "int4+zstd", "pca2+int8", "snr12"]


@pytest.mark.parametrize("codec", CODECS)
def test_the_page_is_enough_to_read_a_store(unpacked: Path, codec: str) -> None:
    root = unpacked / codec
    manifest = json.loads((root / "manifest.json").read_text())
    expected = np.load(root / "expected.npz")
    for level in manifest["spec"]:
        for row in range(3):
            value = Page(root, manifest, level, row).value()
            np.testing.assert_allclose(
                value, expected[f"{row}/{level['name']}"], rtol=1e-5, atol=1e-5
            )
    expected.close()


@pytest.mark.parametrize("codec", CODECS)
def test_the_page_is_enough_to_check_a_store(unpacked: Path, codec: str) -> None:
    root = unpacked / codec
    manifest = json.loads((root / "manifest.json").read_text())
    checksum = manifest.pop("checksum")
    assert digest(manifest) == checksum
    identity = {name: manifest[name] for name in IDENTITY}
    identity["codec_digest"] = manifest["codec_digest"]
    identity["format_version"] = manifest["format_version"]
    assert digest(identity) == manifest["fingerprint"]
    images = digest_arrays(dict(np.load(root / "images.npz")), IMAGES, named=False)
    assert images.hexdigest() == manifest["images_digest"]
    named = root / f"truth-{manifest['truth_digest'][:16]}.npz"
    truth = digest_arrays(dict(np.load(named)), TRUTH, named=False)
    categories = manifest["categories"]
    truth.update(json.dumps([categories["ids"], categories["names"]]).encode())
    assert truth.hexdigest() == manifest["truth_digest"]
    state = dict(np.load(root / "codec.npz")) if (root / "codec.npz").exists() else {}
    of_state = digest_arrays(state, sorted(state), named=True).hexdigest()
    assert of_state == manifest["codec_digest"]
    metadata = hashlib.sha256()
    for path in sorted(str(path.relative_to(root)) for path in root.rglob("zarr.json")):
        content = (root / path).read_bytes()
        values = json.loads(content)
        if path == "zarr.json" and values.pop("consolidated_metadata", None):
            content = json.dumps(values, indent=2).encode()
        metadata.update(f"{path} {len(content)}\n".encode() + content)
    assert metadata.hexdigest() == manifest["metadata_digest"]
    for name in ("views", "truth_digest", "categories"):
        del identity[name]
    for path in (root / "commits").glob("*.json"):
        record = json.loads(path.read_text())
        checksum = record.pop("checksum")
        assert digest(record) == checksum
        assert record["fingerprint"] == digest(identity)


def test_the_page_is_enough_to_read_images_that_were_added(unpacked: Path) -> None:
    root = unpacked / "added"
    manifest = json.loads((root / "manifest.json").read_text())
    ((first, images_digest),) = manifest["added"]
    assert first == len(np.load(root / "images.npz")["image_ids"])
    images = dict(np.load(root / f"images-{images_digest[:16]}.npz"))
    assert digest_arrays(images, IMAGES, named=False).hexdigest() == images_digest
    truth = dict(np.load(root / f"truth-{manifest['truth_digest'][:16]}.npz"))
    assert len(truth["offsets"]) == first + len(images["image_ids"]) + 1
    record = json.loads((root / "commits/base-b96x128g1-000000.json").read_text())
    assert record["image_ids"] == images["image_ids"].tolist()
    identity = {name: manifest[name] for name in (*IDENTITY, "codec_digest", "format_version")}
    assert digest({**identity, "added": manifest["added"]}) == manifest["fingerprint"]
    for name in ("views", "truth_digest", "categories"):
        del identity[name]
    assert record["fingerprint"] == digest({**identity, "images_digest": images_digest})
    expected = np.load(root / "expected.npz")
    for level in manifest["spec"]:
        array = f"{level['name']}/values"
        content = (root / "base/b96x128g1" / array / "c/0/0/0/0").read_bytes()
        packed = chunks(content, manifest["block_size"])
        assert len(packed) == 1
        height, width = 96 // level["stride"], 128 // level["stride"]
        value = np.frombuffer(packed[0][:-4], "<f4").reshape(height, width, -1)
        np.testing.assert_array_equal(value.transpose(2, 0, 1), expected[f"3/{level['name']}"])


@pytest.mark.parametrize("codec", CODECS)
def test_the_page_is_enough_to_check_the_shards(unpacked: Path, codec: str) -> None:
    root = unpacked / codec
    block_size = json.loads((root / "manifest.json").read_text())["block_size"]
    image_ids = np.load(root / "images.npz")["image_ids"].tolist()
    for path in (root / "commits").glob("*.json"):
        record = json.loads(path.read_text())
        number = int(path.stem.rpartition("-")[2])
        assert record["image_ids"] == image_ids[number * block_size : (number + 1) * block_size]
        for array, shard in record["shards"].items():
            content = shard_file(root, array, number).read_bytes()
            assert len(content) == shard["nbytes"]
            assert xxhash.xxh3_128_hexdigest(content) == shard["digest"]
            packed = chunks(content, block_size)
            assert len(packed) == len(record["image_ids"])
            assert b"".join(chunk[-4:] for chunk in packed).hex() == shard["chunk_checksums"]

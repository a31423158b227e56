"""Array files: what numpy.savez writes is read back, anything else is refused (fault F11)."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cachedet.errors import StoreError
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.npz import dump_arrays, load_arrays


def load(folder: Path, content: bytes, *wanted: str) -> dict[str, np.ndarray]:
    (folder / "annotations.npz").write_bytes(content)
    return load_arrays(LocalFiles(folder), "annotations.npz", wanted=wanted, remedy="Do this.")


def test_arrays_come_back(tmp_path: Path) -> None:
    arrays = {
        "C3/basis": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 4)),
        "scalar": np.array(True),
        "bytes": np.frombuffer(b"abc", np.uint8),
    }
    loaded = load(tmp_path, dump_arrays(arrays), *arrays)
    assert list(loaded) == list(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].flags.writeable
        np.testing.assert_array_equal(loaded[name], array)
    assert load(tmp_path, dump_arrays({}), "a") == {}


def zip_of(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return stored.getvalue()


def npy_of(header: str, values: bytes = b"", version: bytes = b"\1\0") -> bytes:
    padded = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(padded)) + padded + values


def header_of(shape: str, kind: str = "'<i8'") -> str:
    return f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}"


def labels_of(header: str, version: bytes = b"\1\0") -> bytes:
    """An archive of 24 bytes under this header."""
    return zip_of([("labels.npy", npy_of(header, bytes(24), version))])


LABELS = npy_of(header_of("(3,)"), bytes(24))
ARCHIVES = {
    "no end": (zip_of([("labels.npy", LABELS)])[:-1], "its end is cut off"),
    "negative": (labels_of(header_of("(-3, -1)")), r"claims to be of shape \(-3, -1\)"),
    "objects": (
        labels_of(header_of("(3,)", "'|O'")),
        "entry labels.npy holds object, not plain numbers",
    ),
    "deflated": (zip_of([("labels.npy", LABELS)], zipfile.ZIP_DEFLATED), "is compressed or larger"),
    "larger": (
        zip_of([("labels.npy", LABELS)]).replace(struct.pack("<I", len(LABELS)), b"\xee" * 4),
        "is compressed or larger than the file",
    ),
    "version": (labels_of(header_of("(3,)"), b"\2\0"), r"has npy version \(2, 0\)"),
    "objects inside": (labels_of(header_of("(3,)", "[('a', '|O')]")), "not plain numbers"),
    "deep header": (zip_of([("labels.npy", npy_of("(" * 5000))]), "EOF|nested"),
    "long header": (zip_of([("labels.npy", npy_of("{" + "1," * 9000 + "}"))]), "EOF|max_header"),
    "no header": (zip_of([("labels.npy", b"")]), "reading magic string"),
    "name": (zip_of([("../labels.npy", LABELS)]), "entry '../labels.npy' does not belong there"),
    "no zip": (b"PK\3\4", "requires a buffer of at least 30 bytes"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.filterwarnings("default")  # numpy warns of some headers before it refuses them
def test_forged_archives(tmp_path: Path, kind: str) -> None:
    content, message = ARCHIVES[kind]
    with pytest.raises(
        StoreError, match=rf"annotations.npz is missing or damaged: .*{message}.* Do this"
    ):
        load(tmp_path, content, "labels")


def test_a_cut_at_any_byte_is_noticed(tmp_path: Path) -> None:
    content = dump_arrays({"a": np.arange(3), "b": np.zeros((2, 2))})
    for nbytes in range(len(content)):
        with pytest.raises(StoreError, match="is missing or damaged"):
            load(tmp_path, content[:nbytes], "a", "b")


def test_entries_cannot_overlap_whatever_the_directory_says(tmp_path: Path) -> None:
    """An outer entry whose values are the inner entry: both are listed, only one is there."""
    inner = dump_arrays({"b": np.arange(1000)})
    inner = inner[: inner.index(b"PK\1\2")]
    values = npy_of(header_of(f"({len(inner)},)", "'|u1'"), inner)
    content = zip_of([("a.npy", values)])
    assert load(tmp_path, content, "a", "b").keys() == {"a"}
    listed = content[content.index(b"PK\1\2") : content.index(b"PK\5\6")]
    twice = bytearray(content.replace(listed, listed + listed))
    twice[-12:-10] = twice[-14:-12] = struct.pack("<H", 2)
    with pytest.raises(StoreError, match="its end is cut off"):
        load(tmp_path, bytes(twice), "a", "b")


def test_an_array_that_is_there_twice(tmp_path: Path) -> None:
    content = dump_arrays({"a": np.arange(3), "b": np.arange(4)}).replace(b"b.npy", b"a.npy")
    with pytest.raises(StoreError, match="entry 'a.npy' does not belong there, or is there twice"):
        load(tmp_path, content, "a", "b")


def test_what_proves_no_damage_is_not_called_damage(tmp_path: Path) -> None:
    (tmp_path / "annotations.npz").symlink_to("x" * 300)
    with pytest.raises(StoreError, match="cannot be read: File name too long. That proves no dama"):
        load_arrays(LocalFiles(tmp_path), "annotations.npz", wanted=["a"], remedy="Do this.")

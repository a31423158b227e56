from __future__ import annotations

import codecs
import contextlib
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.data.json_files import load_json
from cachedet.errors import DatasetError

VALUES = {"images": [{"id": 1, "file_name": "ü.jpg"}], "nothing": None}
TEXT = json.dumps(VALUES, ensure_ascii=False)


def load(path: Path) -> Any:
    return load_json(path, option="--annotations", what="a COCO JSON file")


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        b"\r\n\t " + TEXT.encode() + b"\n\n",
        codecs.BOM_UTF8 + b" \n" + TEXT.encode(),
    ],
)
def test_what_is_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert load(tmp_path / "a.json") == VALUES


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "it is empty"),
        (b" \n\n", "it is empty"),
        (TEXT.encode("utf-16"), "it is UTF-16 or has zero bytes; save it as UTF-8"),
        (TEXT.encode("utf-16-be"), "it is UTF-16"),
        (TEXT.encode("utf-32"), "it is UTF-16 or has zero bytes"),
        (bytes(5000), "zero bytes"),
        (TEXT.encode("latin-1"), "is 0xfc; save it as UTF-8, which Latin-1 and Windows-1252"),
        (gzip.compress(TEXT.encode(), mtime=0), "compressed; unpack it first"),
        (b"PK\x03\x04....", "compressed"),
        (b"\x89PNG\r\n\x1a\n", "an image"),
        (b"\xff\xd8\xff\xe0", "an image"),
        (b"<?xml version='1.0'?><annotation>", "XML, such as Pascal VOC"),
        (b"<!DOCTYPE html><html>", "a web page: was a download refused?"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS; `git"),
        (b"images:\n  - id: 1\n", "YAML"),
        (b"---\nimages: []\n", "YAML"),
        (b"file,x,y,w,h\na.jpg,1,2,3,4\n", "CSV or another table"),
        (b"17,a.jpg,2,3\n", "CSV or another table"),
        (b"0 0.5 0.5 0.25 0.3\n", "a label file of YOLO, whose data set has a data.yaml"),
        (b"@@@", "something else; it begins with b'@@@'"),
        (TEXT.encode()[:-9], "it ends too early: was a copy or download cut off"),
        (TEXT.encode()[:25], "it ends too early"),
        (TEXT.encode() + b"\n" + TEXT.encode(), "it holds several values, as JSON Lines does"),
        (TEXT.encode() + b"xyz", "Extra data"),
        (b"{'images': []}", "stand in double quotes"),
        (b'{"images": [], "annotations": [], "images": []}', "the key 'images' more than once"),
        (b'[{"bbox": [1], "bbox": [2]}]', "the key 'bbox' more than once"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"[1" + b"0" * 5000 + b"]", "4300 digits"),
    ],
)  # fmt: skip
def test_the_cause_is_named(content: bytes, cause: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="a.json is not JSON in UTF-8: ") as caught:
        load(path)
    assert cause in str(caught.value)
    assert len(str(caught.value)) < 500


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A FIFO would wait for a writer, a device has no end."""
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to("loop.json")
    for name, message in {
        "fifo.json": "expects a COCO JSON file; .*fifo.json is no regular file",
        "/dev/zero": "expects a COCO JSON file; /dev/zero is no regular file",
        "folder.json": "expects a COCO JSON file; .*folder.json is a folder",
        "loop.json": "loop.json cannot be read: Too many levels of symbolic links",
        "n" * 300: "n cannot be read: File name too long",
        "none.json": "there is no file .*none.json",
        "folder.json/../folder.json/a.json": "there is no file",
    }.items():
        with pytest.raises(DatasetError, match=message):
            load(tmp_path / name)


def test_a_sparse_giant_is_not_read(tmp_path: Path) -> None:
    for beginning in (b"", b"{"):
        with (tmp_path / "a.json").open("wb") as file:
            file.write(beginning)
            file.truncate(1 << 43)
        with pytest.raises(DatasetError, match=r"does not fit into memory: it has 8,796,093"):
            load(tmp_path / "a.json")


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=4)), min_size=1, max_size=5))
def test_damaged_bytes_are_read_or_refused(tmp: Path, changes: list[tuple[int, bytes]]) -> None:
    content = TEXT.encode()
    for place, new in changes:
        at = place % (len(content) + 1)
        content = content[:at] + new + content[at + len(new) // 2 :]
    (tmp / "a.json").write_bytes(content)
    with contextlib.suppress(DatasetError):
        load(tmp / "a.json")


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples."""
    return tmp_path_factory.mktemp("json")

"""Exports of which a few bytes were replaced: read, or refused with a message."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest

from cachedet.data.annotation_formats import is_annotations, read_dataset, read_sections
from cachedet.errors import CachedetError

NASTY = (
    b"", b"\0", b"\xff\xfe", b"../", b"/", b"-1", b"1e999", b"nan", b"9" * 400, b"0.5 " * 50, b"<",
    b"</box>", b"&x;", b"<!ENTITY x 'y'>", b"[", b"{", b": ", b"- ", b"&a [*a]", b"\n", b"\r", b'"',
    b"names: ", b"\xc2\x85", b"0", b"x" * 300, b"<image/>", b"C:\\", b"a\x00b.jpg", b"?", b"*",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["yolo", "list", "voc", "cvat"])
def test_mutated_exports(exports: Any, tmp_path: Path, kind: str) -> None:
    images = exports.write_images(tmp_path / "set" / "images" / "train", exports.OUTLINED).parent
    root = tmp_path / "set"
    if kind == "voc":
        source = exports.write_voc(root / "voc")
        (source / "classes.txt").write_text("cat\ndog\nbird\n")
    elif kind == "cvat":
        shape = '<mask label="dog" rle="1,2,3" left="1" top="2" width="3" height="2"/>'
        source = exports.write_cvat(root / "a.xml", exports.OUTLINED, shapes=shape)
    else:
        source = exports.write_yolo(root, {"train": exports.OUTLINED})
        if kind == "list":
            (root / "train.txt").write_text("images/train/a.jpg\n./images/train/b.png\n")
            source.write_text("path: .\ntrain: train.txt\nnames: [cat, dog, bird]\n")
    files = [path for path in root.rglob("*") if path.suffix in (".txt", ".yaml", ".xml")]
    read = 0
    for seed in range(150):
        rng = random.Random(f"{kind} {seed}")
        path = rng.choice(sorted(files))
        before = path.read_bytes()
        changed = bytearray(before)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(changed) + 1)
            changed[at : at + rng.choice((0, 1, 4, 20))] = rng.choice(NASTY)
        path.write_bytes(changed)
        for options in ({"images": images, "rotated": "outer"}, {}):
            with contextlib.suppress(CachedetError):
                if options:
                    read_dataset(annotations=source, **options)
                else:
                    read_sections(source)
                read += 1
        path.write_bytes(before)
    assert read > 5


@pytest.mark.parametrize(
    "name", ["n" * 300, "a\0b", "a\0b:train", "\ud800", "loop", "", ":", "x:y"]
)
def test_sources_of_strange_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x").write_text("")
    source = tmp_path / name
    with pytest.raises(CachedetError):
        read_dataset(annotations=source, images=tmp_path / "images")
    assert not is_annotations(source)

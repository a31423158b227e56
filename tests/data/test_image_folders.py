from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from cachedet.data.image_folders import images_in
from cachedet.errors import InputError


def test_images_by_name_and_a_word_on_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b.jpg", "a.JFIF", "c.webp", "._b.jpg", ".hidden.png", "t.txt", "u.txt", "x"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    with caplog.at_level(logging.INFO):
        found = images_in(tmp_path)
    assert [file.name for file in found] == ["a.JFIF", "b.jpg", "c.webp"]
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}: passed over 2 hidden and 4 that are no image files by their names "
        "(.txt, no ending, folders)"
    )


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "._a.jpg").touch()
    with pytest.raises(InputError, match="holds no images \\(.*.jpg"):
        images_in(tmp_path)
    with pytest.raises(InputError, match="cannot list .*gone: No such file"):
        images_in(tmp_path / "gone")


def test_names_that_are_no_utf8_are_listed(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).touch()
    assert [os.fsencode(file.name) for file in images_in(tmp_path)] == [b"caf\xe9.jpg"]


def test_folders_in_folders(tmp_path: Path) -> None:
    """Its own images first; neither hidden folders, nor links, nor the one that is left out."""
    for name in ("z.jpg", "a/b.jpg", "a/c/d.jpg", "b/e.jpg", ".git/f.jpg", "out/g.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)

    def found(**how: object) -> list[str]:
        files = images_in(tmp_path, recursive=True, **how)  # type: ignore[arg-type]
        return [str(file.relative_to(tmp_path)) for file in files]

    own = ["z.jpg", "a/b.jpg", "a/c/d.jpg", "b/e.jpg"]
    assert found() == [*own, "out/g.jpg"]
    assert found(without=tmp_path / "a" / ".." / "out") == own
    assert found(without=tmp_path / "gone") == [*own, "out/g.jpg"]

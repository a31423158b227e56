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

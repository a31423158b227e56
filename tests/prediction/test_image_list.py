"""Which files are meant by what a user names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cachedet.errors import InputError
from cachedet.prediction.image_list import list_images


def test_files_are_listed_without_comparing_all_with_all(tmp_path: Path) -> None:
    """20,000 names; each with each would be 400 million comparisons."""
    names = [f"{number:05d}.jpg" for number in range(20_000)]
    for name in names:
        (tmp_path / name).touch()
    assert [file.name for file in list_images([tmp_path])] == names
    assert len(list_images([tmp_path, tmp_path / "00007.jpg"])) == 20_000
    for url in ("http://127.0.0.1/x.png", "S3://bucket/x.png"):
        with pytest.raises(InputError, match="x.png; URLs are not taken: download the image"):
            list_images([Path(url)])
    with pytest.raises(InputError, match="there is no image .*gone.jpg$"):
        list_images([tmp_path / "gone.jpg"])
    with pytest.raises(InputError, match="expected at least one image or folder of images"):
        list_images([])


def test_each_file_counts_once_where_it_was_named_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.jpg", "a.jpg", "[1].jpg"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    named = [Path("b.jpg"), tmp_path, Path("."), Path("*.jpg"), Path("x/../a.jpg")]
    (tmp_path / "x").mkdir()
    assert list(map(str, list_images(named))) == [
        "b.jpg", str(tmp_path / "[1].jpg"), str(tmp_path / "a.jpg"),
    ]  # fmt: skip
    assert list_images([Path("[1].jpg")]) == [Path("[1].jpg")]  # a file, before it is a pattern


def test_patterns(tmp_path: Path) -> None:
    for name in ("a.jpg", "in/b.JPG", "in/deep/c.png", "in/t.txt", "out/a.jpg", "folder.jpg/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found(pattern: str) -> list[str]:
        files = list_images([tmp_path / pattern], out=tmp_path / "out")
        return [str(file.relative_to(tmp_path)) for file in files]

    assert found("*") == ["a.jpg"]
    assert found("*/*") == ["in/b.JPG"]
    assert found("**/*") == ["a.jpg", "in/b.JPG", "in/deep/c.png"]
    assert found("in/**/[bc].*") == ["in/b.JPG", "in/deep/c.png"]
    assert found("out/*") == ["out/a.jpg"]  # then it was meant
    with pytest.raises(InputError, match=r"no image or video matches .*/\*\.txt; 1 other files"):
        found("in/*.txt")
    with pytest.raises(InputError, match=r"no image or video matches .*/\*\.bmp$"):
        found("*.bmp")


def test_every_so_many_of_each_folder(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "a/3.jpg", "a/4.jpg", "b/5.jpg", "b/6.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listed = list_images([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "2.jpg"], every=3)
    assert [file.name for file in listed] == ["1.jpg", "4.jpg", "5.jpg", "2.jpg"]


def test_what_lies_in_a_link_that_is_named_is_taken(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").touch()
    (tmp_path / "link").symlink_to("real")
    assert list_images([tmp_path / "link"]) == [tmp_path / "link" / "a.jpg"]
    assert os.path.exists(tmp_path / "link" / "a.jpg")


def test_a_video_without_pyav_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.MP4").touch()
    with pytest.raises(InputError, match=r"clip.MP4 is a video: .* 'cachedet\[video\]'"):
        list_images([tmp_path / "clip.MP4"])


def test_videos_in_folders_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("in/a.jpg", "in/deep/b.MP4", "in/deep/c.mov", "films/d.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    caplog.set_level("INFO", logger="cachedet")
    assert list_images([tmp_path / "in"], recursive=True) == [tmp_path / "in" / "a.jpg"]
    assert "2 videos passed over, for videos are named: '" in caplog.text
    with pytest.raises(InputError, match=r"holds no images .*; 1 video passed over.*\*\*/\*.mp4'$"):
        list_images([tmp_path / "films"])

"""Places that cannot be written are known before the work; new folders survive a power cut."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from cachedet.store.files.durable import temporary_path, write_durably
from cachedet.store.files.places import find_obstacle, make_folder


def test_a_place_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, tmp_path / "a/b/c", Path("."), Path("a/b")):
        assert find_obstacle(place) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("file", errno.ENOTDIR),
        ("file/run", errno.ENOTDIR),
        ("file/a/b/run", errno.ENOTDIR),
        ("loop", errno.ELOOP),
        ("loop/run", errno.ELOOP),
        ("dangling", errno.ENOENT),
        ("dangling/run", errno.ENOENT),
        ("a" * 300, errno.ENAMETOOLONG),
        ("a\0b", errno.EINVAL),
    ],
)
def test_what_stands_in_the_way_is_named(tmp_path: Path, place: str, number: int) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    obstacle = find_obstacle(tmp_path / place)
    assert obstacle is not None
    assert obstacle.errno == number
    assert str(tmp_path / place).startswith(obstacle.filename)


def test_a_read_only_place(tmp_path: Path, kit: Any) -> None:
    with kit.read_only(tmp_path):
        for place in (tmp_path, tmp_path / "a/b"):
            obstacle = find_obstacle(place)
            assert obstacle is not None
            assert obstacle.errno in (errno.EROFS, errno.EACCES)


def test_a_full_disk(tmp_path: Path, kit: Any) -> None:
    with kit.mounted(tmp_path, "-t tmpfs -o size=64k none"):
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "ballast").write_bytes(bytes(10**6))
        obstacle = find_obstacle(tmp_path / "a")
        assert obstacle is not None
        assert obstacle.errno == errno.ENOSPC


@pytest.mark.skipif(sys.platform != "linux", reason="has /proc and /sys")
@pytest.mark.parametrize("place", ["/proc/st", "/sys/fs/st", "/proc/self/a/b"])
def test_a_filesystem_without_a_size_that_cannot_be_written(place: str) -> None:
    obstacle = find_obstacle(Path(place))
    assert obstacle is not None
    assert place.startswith(obstacle.filename)


def test_a_filesystem_without_a_size_that_can_be_written(tmp_path: Path, kit: Any) -> None:
    """A tmpfs without a limit has 0 blocks."""
    with kit.mounted(tmp_path, "-t tmpfs -o size=0 none"):
        assert os.statvfs(tmp_path).f_blocks == 0
        assert find_obstacle(tmp_path / "a") is None
        assert list(tmp_path.iterdir()) == []


def test_a_long_name_is_written(tmp_path: Path) -> None:
    for name in ("a" * 255, "\U0001f600" * 63):
        write_durably(tmp_path / name, b"x")
        assert len(os.fsencode(temporary_path(tmp_path / name).name)) <= 255
    assert len(list(tmp_path.iterdir())) == 2


def synced(act: Any) -> list[str]:
    """Names of the folders that `sync_directory` was called with meanwhile."""
    folders = []

    def watch(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "sync_directory":
            folders.append(frame.f_locals["path"].name)

    sys.setprofile(watch)
    try:
        act()
    finally:
        sys.setprofile(None)
    return folders


def test_every_folder_that_is_made_is_synced_into_its_parent(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    assert synced(lambda: make_folder(there / "a/b/c")) == ["there", "a", "b"]
    assert synced(lambda: make_folder(there / "a/b/c")) == []
    assert synced(lambda: make_folder(there / "a/b/d")) == ["b"]


def test_a_new_store_is_on_the_disk_with_all_the_folders_above_it(tmp_path: Path, kit: Any) -> None:
    """Up to the first that was there: else a power cut takes what was committed."""
    there = tmp_path / "there"
    there.mkdir()
    root = there / "a" / "b" / "s.zarr"
    folders = synced(lambda: kit.fill(root))
    assert folders[:2] == ["there", "a"]
    made = {path.name for path in root.rglob("*") if path.is_dir() and any(path.iterdir())}
    assert made - {"leases"} <= {*folders}  # one in which nothing was committed may go

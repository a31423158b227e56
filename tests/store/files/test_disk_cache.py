"""Copies of shards on a disk: whole pieces, a bound, who goes first, and a disk that refuses."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from cachedet.errors import ConfigError
from cachedet.store.files.disk_cache import DiskCache, default_folder

NBYTES = 1000


def key(number: int) -> str:
    found = DiskCache.key_of(f"{number:032x}")
    assert found is not None
    return found


def keep(cache: DiskCache, number: int, *, content: bytes = b"abc", offset: int = 0) -> None:
    cache.keep(key(number), NBYTES, pieces={offset: memoryview(content)})


def held(cache: DiskCache) -> list[int]:
    return sorted(int(path.name, 16) for path in cache.root.glob("??/*"))


def age(cache: DiskCache, number: int, seconds: float) -> None:
    """As if nobody had used it for so long."""
    path = cache.root / key(number)
    status = path.stat()
    os.utime(path, (status.st_atime, status.st_mtime - seconds))


def test_pieces_lie_where_they_lie_in_the_shard(tmp_path: Path) -> None:
    cache = DiskCache.make(tmp_path / "new" / "cache", 10 * NBYTES)
    keep(cache, 1, content=b"abc", offset=500)
    keep(cache, 1, content=b"xyz", offset=100)
    file = cache.open(key(1))
    assert file.nbytes == NBYTES
    piece = memoryview(bytearray(3))
    for offset, content in ((500, b"abc"), (100, b"xyz"), (0, bytes(3))):
        file.read_into(offset, [piece])
        assert bytes(piece) == content


def test_a_digest_is_no_path() -> None:
    for digest in ("../../etc/passwd", "", "a" * 31, "A" * 32, f"{'a' * 32}\n"):
        assert DiskCache.key_of(digest) is None


def test_the_bound_is_held_by_all_processes_together(tmp_path: Path) -> None:
    first, second = (DiskCache.make(tmp_path, 5 * NBYTES) for _ in range(2))
    for number in range(20):
        keep((first, second)[number % 2], number)
    assert held(first) == list(range(5))  # in use since both began: what comes later has no room


def test_what_was_not_used_for_the_longest_time_goes_first(tmp_path: Path) -> None:
    former = DiskCache.make(tmp_path, 5 * NBYTES)
    for number in range(5):
        keep(former, number)
        age(former, number, 1000 + number)  # 4 is the oldest
    cache = DiskCache.make(tmp_path, 5 * NBYTES)
    cache.open(key(4))  # used again
    keep(cache, 10)
    keep(cache, 11)
    assert held(cache) == [0, 1, 4, 10, 11]
    for number in range(12, 20):
        keep(cache, number)
    assert len(held(cache)) == 5
    assert {4, 10, 11} <= set(held(cache))


def test_a_smaller_bound_than_before(tmp_path: Path) -> None:
    former = DiskCache.make(tmp_path, 5 * NBYTES)
    for number in range(5):
        keep(former, number)
        age(former, number, 1000)
    cache = DiskCache.make(tmp_path, 2 * NBYTES)
    keep(cache, 10)
    assert len(held(cache)) == 2


def test_what_is_larger_than_all_room_is_not_kept(tmp_path: Path) -> None:
    cache = DiskCache.make(tmp_path, NBYTES - 1)
    keep(cache, 1)
    assert held(cache) == []


def test_what_a_killed_process_counted_is_counted_anew(tmp_path: Path) -> None:
    cache = DiskCache.make(tmp_path, 2 * NBYTES)
    for said in ("999999", "not a number"):
        (tmp_path / "used").write_text(said)
        DiskCache.make(tmp_path, 2 * NBYTES)
        assert (tmp_path / "used").read_text() == "0"
    (tmp_path / "used").write_text("")
    keep(cache, 1)
    assert (tmp_path / "used").read_text() == str(NBYTES)


def test_half_of_the_disk_where_nothing_is_said(tmp_path: Path) -> None:
    cache = DiskCache.make(tmp_path)
    assert 0 < cache.most < 2**60
    assert f"in {tmp_path}" in cache.describe_bound()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the disk cache cannot write into .*another folder"):
        DiskCache.make(tmp_path / "file" / "cache", NBYTES)


def test_a_system_that_has_no_such_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pwrite")
    with pytest.raises(ConfigError, match="a disk cache needs a system that writes into"):
        DiskCache.make(tmp_path, NBYTES)


def test_a_disk_that_refuses_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = DiskCache.make(tmp_path, 10 * NBYTES)
    (tmp_path / key(1)).mkdir(parents=True)  # as good as a full disk, also for root
    with caplog.at_level(logging.WARNING):
        keep(cache, 1)
        keep(cache, 2)
    assert len(caplog.records) == 1
    assert "is read from the store from now on" in caplog.text
    assert not (tmp_path / key(2)).exists()


def test_where_the_copies_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CACHEDET_DISK_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "cachedet"
    monkeypatch.setenv("CACHEDET_DISK_CACHE", str(tmp_path / "other"))
    assert default_folder() == tmp_path / "other"

"""Copies of shards of remote stores on a disk of this machine, below a bound of bytes.

A copy lies under the digest of its shard, so that a store that was extracted anew never meets those
of its former bytes, and has the shard's length from the start: what has not come yet is a hole.
Whoever reads compares each chunk with its commit record, as in any store. So a hole, a chunk that a
killed process wrote in half, and one that the disk lost are all the same: not there, fetched anew.
Any number of processes read and fill at once, as all write the same bytes to the same places.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cachedet.errors import ConfigError
from cachedet.store.files.durable import readable_nbytes
from cachedet.store.files.folder_lock import one_at_a_time
from cachedet.store.files.source import LocalFiles, OpenFile

FOLDER_NAME = "CACHEDET_DISK_CACHE"
_DIGEST = re.compile(r"[0-9a-f]{32}")  # what a hostile store could say instead would be a path
_USED = "used"  # file with the bytes of all copies
_TOUCH_SECONDS = 600.0  # between two notes that a copy is in use
_TOGETHER_SECONDS = 60.0  # processes of one job start within
_FULL_SECONDS = 60.0  # after which a full cache is looked at again
_log = logging.getLogger("cachedet.store")


def default_folder() -> Path:
    """$CACHEDET_DISK_CACHE, or a folder where the system keeps caches of this user."""
    if named := os.environ.get(FOLDER_NAME):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cachedet"


class DiskCache(LocalFiles):
    """Read by key as a folder is; `keep` fills it.

    Where there is no room for one more shard, those go that nobody used for the longest time. What
    was used since this process began stays: an epoch reads everything once, and would else drop
    each shard just before the next one wants it. What finds no room is read from its store.
    """

    def __init__(self, folder: Path, most: int) -> None:
        super().__init__(folder)
        self.most = most  # bytes
        self._begun = time.time()
        self._touched: dict[str, float] = {}  # when a copy was last said to be in use
        self._full_until = 0.0
        self._is_broken = False

    @classmethod
    def make(cls, folder: Path, most: int | None = None) -> DiskCache:
        """Make the folder, and count what it holds; `most` bytes, or half of what the disk has.

        Raises ConfigError where nothing can be written there, or the system cannot share files so.
        """
        if not hasattr(os, "pwrite"):
            raise ConfigError(
                "a disk cache needs a system that writes into the middle of shared files (Linux, "
                "macOS); here train without it (--residency stream)"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(folder):
                held = sum(nbytes for _, nbytes, _ in _copies(folder))
                (folder / _USED).write_text(str(held))
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise ConfigError(
                f"the disk cache cannot write into {folder}: {error.strerror or error}; name "
                f"another folder ({FOLDER_NAME}), or train without it (--residency stream)"
            ) from error
        return cls(folder, (free + held) // 2 if most is None else most)

    def describe_bound(self) -> str:
        return f"at most {readable_nbytes(self.most)} in {self.root}"

    @staticmethod
    def key_of(digest: str) -> str | None:
        """Where the copy of a shard lies; None where that is no digest."""
        return f"{digest[:2]}/{digest}" if _DIGEST.fullmatch(digest) else None

    def open(self, key: str) -> OpenFile:
        file = super().open(key)
        now = time.monotonic()
        if now - self._touched.get(key, -_TOUCH_SECONDS) >= _TOUCH_SECONDS:
            self._touched[key] = now
            with suppress(OSError):
                os.utime(self.root / key)
        return file

    def keep(self, key: str, nbytes: int, *, pieces: Mapping[int, memoryview]) -> None:
        """Write pieces of a shard of `nbytes` by their offsets, as far as there is room.

        The first that the disk refuses is the last that is tried; the log says so.
        """
        if self._is_broken:
            return
        path = self.root / key
        try:
            try:
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                if not self._make_room(path, nbytes):
                    return
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                for offset, piece in pieces.items():
                    _write(file, offset, piece)
            finally:
                os.close(file)
        except FileNotFoundError:  # dropped by another process meanwhile
            pass
        except OSError as error:
            self._is_broken = True
            _log.warning(
                "note: the disk cache cannot write into %s (%s): what it lacks is read from the "
                "store from now on",
                self.root,
                error.strerror or error,
            )

    def _make_room(self, path: Path, nbytes: int) -> bool:
        """Make an empty copy where it fits below the bound; whether it is there."""
        if nbytes > self.most or time.monotonic() < self._full_until:
            return False
        with one_at_a_time(self.root):
            if path.exists():
                return True
            used = self._used()
            if used + nbytes > self.most:
                used -= self._drop(used + nbytes - self.most)
            if used + nbytes > self.most:
                self._full_until = time.monotonic() + _FULL_SECONDS
                return False
            path.parent.mkdir(exist_ok=True)
            (self.root / _USED).write_text(str(used + nbytes))
            with path.open("xb") as file:
                file.truncate(nbytes)
        return True

    def _used(self) -> int:
        try:
            return int((self.root / _USED).read_text())
        except (OSError, ValueError):
            return sum(nbytes for _, nbytes, _ in _copies(self.root))

    def _drop(self, wanted: int) -> int:
        """Remove copies until so many bytes are free; returns how many are."""
        freed = 0
        before = self._begun - _TOGETHER_SECONDS
        for used_at, nbytes, path in sorted(_copies(self.root)):
            if freed >= wanted or used_at >= before:
                break
            path.unlink(missing_ok=True)
            freed += nbytes
        return freed


def _copies(folder: Path) -> list[tuple[float, int, Path]]:
    """When each was last used, its bytes, and where it lies."""
    found = []
    for path in folder.glob("[0-9a-f][0-9a-f]/*"):
        if _DIGEST.fullmatch(path.name):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
    return found


def _write(file: int, offset: int, piece: memoryview) -> None:
    done = 0
    while done < len(piece):
        done += os.pwrite(file, piece[done:], offset + done)

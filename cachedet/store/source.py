"""Where the bytes of a store come from: local files read in place, or anything zarr can open."""

from __future__ import annotations

import asyncio
import atexit
import errno
import functools
import os
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import FsspecStore, LocalStore

from cachedet.errors import StoreError

T = TypeVar("T")


class OpenFile(Protocol):
    """One file, open for reading at any offset from any thread."""

    nbytes: int
    identity: tuple[int, ...]  # changes when the file is replaced

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, one after the other. Raises EOFError where the file ends before."""
        ...


class ByteSource(Protocol):
    """The files of a store by key (relative path with slashes)."""

    def describe(self, key: str) -> str:
        """The key as people can find it."""
        ...

    def read(self, key: str) -> bytes:
        """A whole small file. Raises FileNotFoundError."""
        ...

    def names(self, folder: str) -> set[str]:
        """Names of the files in a folder; empty where there is none."""
        ...

    def open(self, key: str) -> OpenFile:
        """Raises FileNotFoundError."""
        ...


class LocalFiles:
    """A store in a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def describe(self, key: str) -> str:
        return str(self.root / key)

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def names(self, folder: str) -> set[str]:
        try:
            return set(os.listdir(self.root / folder))
        except FileNotFoundError:
            return set()

    def open(self, key: str) -> OpenFile:
        try:
            return _LocalFile(f"{self.root}/{key}")
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise StoreError(
                    f"cannot open {self.root / key}: this process has too many files open; raise "
                    "the limit (`ulimit -n 4096`) or close what else is open"
                ) from error
            raise


class _LocalFile:
    """Closes itself when the last reader lets go of it, so no descriptor is reused under a read."""

    __slots__ = ("_descriptor", "identity", "nbytes")

    def __init__(self, path: str) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        status = os.fstat(self._descriptor)
        self.nbytes = status.st_size
        self.identity: tuple[int, ...] = (status.st_dev, status.st_ino, status.st_mtime_ns)

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if hasattr(os, "preadv"):  # macOS has only pread
            wanted = sum(map(len, buffers))
            if os.preadv(self._descriptor, buffers, offset) == wanted:
                return
        for buffer in buffers:  # a signal or the kernel's limit of 2 GB cut it short
            offset += self._fill(offset, buffer)

    def _fill(self, offset: int, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer):
            content = os.pread(self._descriptor, len(buffer) - done, offset + done)
            if not content:
                raise EOFError(f"the file ends at {offset + done}")
            buffer[done : done + len(content)] = content
            done += len(content)
        return done

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class ZarrStorage:
    """A store behind any zarr storage class (object storage, zip file, memory), read-only."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._wait(store._ensure_open())

    def describe(self, key: str) -> str:
        return f"{self._store}/{key}"

    def read(self, key: str) -> bytes:
        return self._get(key, None)

    def names(self, folder: str) -> set[str]:
        return self._wait(self._list(folder))

    def open(self, key: str) -> OpenFile:
        return _StoredObject(self, key, self._wait(self._store.getsize(key)))

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        return self._get(key, RangeByteRequest(start, stop))

    def _get(self, key: str, byte_range: RangeByteRequest | None) -> bytes:
        found = self._wait(self._store.get(key, default_buffer_prototype(), byte_range))
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", self.describe(key))
        return found.to_bytes()

    async def _list(self, folder: str) -> set[str]:
        return {name.rpartition("/")[2] async for name in self._store.list_dir(folder)}

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, _event_loop()).result()


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One loop in one thread for all storages; zarr's storage classes are asynchronous."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="zarr-storage")
    thread.start()

    def stop() -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    atexit.register(stop)
    return loop


class _StoredObject:
    def __init__(self, storage: ZarrStorage, key: str, nbytes: int) -> None:
        self._storage = storage
        self._key = key
        self.nbytes = nbytes
        self.identity: tuple[int, ...] = (nbytes,)

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        wanted = sum(map(len, buffers))
        content = self._storage.read_range(self._key, offset, offset + wanted)
        if len(content) != wanted:
            raise EOFError(f"the object ends at {offset + len(content)}")
        start = 0
        for buffer in buffers:
            buffer[:] = content[start : start + len(buffer)]
            start += len(buffer)


def open_source(location: Path | str | Store) -> ByteSource:
    """A folder, a URL that fsspec knows (such as s3://...), or a zarr storage object."""
    if isinstance(location, Store):
        return ZarrStorage(location)
    if isinstance(location, str) and "://" in location:
        try:
            return ZarrStorage(FsspecStore.from_url(location, read_only=True))
        except (ImportError, ValueError) as error:
            raise StoreError(f"cannot open {location}: {error}") from error
    if not hasattr(os, "pread"):  # Windows
        return ZarrStorage(LocalStore(location, read_only=True))
    return LocalFiles(Path(location))


def file_limit() -> int:
    """Files that may be kept open: a quarter of what the process may open, at most 256."""
    try:
        import resource
    except ImportError:  # Windows
        return 256
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(4, min(256, soft // 4)) if soft > 0 else 256

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

from cachedet.data.regular_files import open_regular
from cachedet.errors import StoreError
from cachedet.store.files.names import most_nbytes

T = TypeVar("T")

_ONE_REQUEST = 64 << 20  # smaller files of a storage are fetched without asking for their size


class OpenFile(Protocol):
    """One file, open for reading at any offset from any thread."""

    nbytes: int
    identity: tuple[int, ...]  # changes when the file is replaced

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, one after the other. Raises EOFError where the file ends before."""


class ByteSource(Protocol):
    """The files of a store by key (relative path with slashes)."""

    def describe(self, key: str) -> str:
        """The key as people can find it."""

    def read(self, key: str) -> bytes:
        """A whole file of metadata. Raises OSError, also where it is larger than it can be."""

    def names(self, folder: str) -> set[str]:
        """Names of the files in a folder; empty where there is none."""

    def open(self, key: str) -> OpenFile:
        """Raises OSError."""


class LocalFiles:
    """A store in a local folder.

    Only regular files are opened: a folder, pipe or device is refused before it can block or flood
    anything. Links are followed, also out of the store (people keep views on other disks): what
    they lead to is handed out only where it is what was committed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def describe(self, key: str) -> str:
        return str(self.root / key)

    def read(self, key: str) -> bytes:
        descriptor = open_regular(f"{self.root}/{key}")
        with open(descriptor, "rb") as file:
            nbytes = os.fstat(descriptor).st_size
            _require_size(nbytes, key)
            return file.read(nbytes)

    def names(self, folder: str) -> set[str]:
        try:
            return set(os.listdir(self.root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except OSError as error:
            raise StoreError(
                f"cannot list {self.root / folder}: {error.strerror}; look after the disk, the "
                "network share and the permissions, then try again"
            ) from error

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
        self._descriptor = open_regular(path)
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


def _require_size(nbytes: int, key: str) -> None:
    """Before anything is read. Raises OSError."""
    most = most_nbytes(key)
    if nbytes > most:
        reason = f"it has {nbytes:,} bytes, which such a file never has (at most {most:,})"
        raise OSError(errno.EFBIG, reason, key)


class ZarrStorage:
    """A store behind any zarr storage class (object storage, zip file, memory), read-only.

    Its connections belong to the process that opened it: pickled it is opened again, after a fork
    it refuses (StoreError) where it would wait for a thread that only the parent has.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._process = os.getpid()
        self._wait(store._ensure_open())

    def __reduce__(self) -> tuple[type[ZarrStorage], tuple[Store]]:
        return ZarrStorage, (self._store,)

    def describe(self, key: str) -> str:
        return f"{self._store}/{key}"

    def read(self, key: str) -> bytes:
        most = most_nbytes(key)
        if most > _ONE_REQUEST:
            _require_size(self.open(key).nbytes, key)
            return self._get(key, None)
        content = self.read_range(key, 0, most + 1)
        _require_size(len(content), key)
        return content

    def names(self, folder: str) -> set[str]:
        return self._wait(self._list(folder))

    def open(self, key: str) -> OpenFile:
        return _StoredObject(self, key, self._wait(self._store.getsize(key)))

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        return self._get(key, RangeByteRequest(start, stop))

    def _get(self, key: str, byte_range: RangeByteRequest | None) -> bytes:
        content = self._wait(self._store.get(key, default_buffer_prototype(), byte_range))
        if content is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", self.describe(key))
        return content.to_bytes()

    async def _list(self, folder: str) -> set[str]:
        return {name.rpartition("/")[2] async for name in self._store.list_dir(folder)}

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._process != os.getpid():
            work.close()
            raise StoreError(
                f"{self._store} was opened before this process was forked, and its connections are "
                "the parent's; open the store in the child, or start it with `spawn`"
            )
        return asyncio.run_coroutine_threadsafe(work, _event_loop(self._process)).result()


@functools.cache
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    """One loop in one thread of a process; zarr's storage classes are asynchronous."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="zarr-storage")
    thread.start()

    def stop() -> None:
        if process != os.getpid():  # a fork has this exit handler, but not the thread
            return
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

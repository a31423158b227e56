"""Where the bytes of a store come from: local files read in place, or what `remote` can open."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from zarr.abc.store import Store
from zarr.storage import LocalStore

from cachedet.data.regular_files import open_regular
from cachedet.errors import StoreError
from cachedet.store.files.locations import is_url
from cachedet.store.files.names import require_size
from cachedet.store.files.remote import ZarrStorage, open_url

T = TypeVar("T")


class OpenFile(Protocol):
    """One file, open for reading at any offset from any thread."""

    nbytes: int
    identity: tuple[int, ...]  # changes when the file is replaced

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, one after the other. Raises EOFError where the file ends before."""


class ByteSource(Protocol):
    """The files of a store by key (relative path with slashes)."""

    is_remote: bool  # other bytes than were written may be the fault of what lies between

    def describe(self, key: str) -> str:
        """The key as people can find it, without credentials."""

    def read(self, key: str) -> bytes:
        """A whole file of metadata. Raises OSError, also where it is larger than it can be."""

    def names(self, folder: str) -> set[str] | None:
        """Names of the files in a folder; empty where there is none, None where nobody knows."""

    def open(self, key: str) -> OpenFile:
        """Raises OSError."""

    def confirm(self, read: Callable[[], T], key: str) -> T:
        """What `read` returns. Where it raises that bytes are not those written, a remote source
        lets it read again, and then raises RemoteStoreError about `key`.
        """


class LocalFiles:
    """A store in a local folder.

    Only regular files are opened: a folder, pipe or device is refused before it can block or flood
    anything. Links are followed, also out of the store (people keep views on other disks): what
    they lead to is handed out only where it is what was committed.
    """

    is_remote = False

    def __init__(self, root: Path) -> None:
        self.root = root

    def confirm(self, read: Callable[[], T], key: str) -> T:
        return read()

    def describe(self, key: str) -> str:
        return str(self.root / key)

    def read(self, key: str) -> bytes:
        descriptor = open_regular(f"{self.root}/{key}")
        with open(descriptor, "rb") as file:
            nbytes = os.fstat(descriptor).st_size
            require_size(nbytes, key)
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


def open_source(location: Path | str | Store) -> ByteSource:
    """A folder, a URL (such as s3://...), or a zarr storage object."""
    if isinstance(location, Store):
        return ZarrStorage(location)
    if isinstance(location, str) and is_url(location):
        return open_url(location)
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

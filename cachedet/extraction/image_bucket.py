"""Images in an object storage, read through obstore ahead of those who decode them.

An image is one request up to 4 MB, and one more for each further 4 MB. The first requests of up to
`_AHEAD` images are under way or their answers wait; whoever opens an image makes room for the next.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any

from zarr.storage import ObjectStore

from cachedet.data.image_files import ImageFiles, ImageFolder
from cachedet.data.images import room_for
from cachedet.errors import BadImageError, DatasetError
from cachedet.store.files.locations import is_url, shown
from cachedet.store.files.remote import ZarrStorage
from cachedet.store.files.schemes import (
    NO_BUCKET,
    OBJECT_STORAGES,
    open_object_storage,
    scheme_of,
)

_AHEAD = 32
_LONGEST_KEY = 1024  # bytes
_PAGE = 10_000  # names of one look at the listing


class ImageBucket:
    """See `ImageFiles`. Opened images are asked for with patience, those ahead once."""

    def __init__(self, store: Any, *, location: str, secrets: frozenset[str] = frozenset()) -> None:
        storage = ObjectStore(store, read_only=True)
        self._storage = ZarrStorage(storage, location=location, secrets=secrets)
        self._store = store
        self.location = location
        self._wanted: dict[str, None] = {}  # in this order
        self._begun: dict[str, Future[bytes]] = {}
        self._lock = threading.Lock()

    @property
    def folder(self) -> Path:
        raise DatasetError(
            f"the images lie in {self.location}; only `extract` reads them there. Mount or copy "
            "them, and give --images the folder"
        )

    def require_some(self) -> None:
        if next(self.names(), None) is None:
            raise DatasetError(
                f"--images {self.location} is empty: there is no object below it. Look at the "
                "prefix (it is a whole folder, and case matters)"
            )

    def has(self, name: str) -> bool:
        return name in self._names

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.names())

    def names(self) -> Iterator[str]:
        page = self._list(None)
        while page:
            yield from page
            page = self._list(page[-1])

    def _list(self, after: str | None) -> list[str]:
        import obstore

        async def get() -> Any:
            listing = obstore.list(self._store, offset=after, chunk_size=_PAGE)
            return await anext(listing, [])

        try:
            found = self._storage.ask(get, "", deed="fetched")
        except FileNotFoundError:
            pass
        else:
            return [one["path"] for one in found]
        raise DatasetError(f"--images {self.location}: {NO_BUCKET}")

    def expect(self, names: Iterable[str]) -> None:
        with self._lock:
            self._wanted.update(dict.fromkeys(names))
            self._begin_more()

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[bytes]:
        with self._lock:
            self._wanted.pop(name, None)
            begun = self._begun.pop(name, None)
            self._begin_more()
        key, content = _key_of(name), bytearray()
        with contextlib.ExitStack() as held:
            try:
                for piece in self._storage.pieces(key, begun):
                    content += piece
                    held.enter_context(room_for(len(content)))
            except FileNotFoundError as error:
                raise BadImageError(os.strerror(errno.ENOENT)) from error  # as of a folder
            yield bytes(content)

    def _begin_more(self) -> None:
        while self._wanted and len(self._begun) < _AHEAD:
            name = next(iter(self._wanted))
            del self._wanted[name]
            with contextlib.suppress(BadImageError):  # told when it is opened
                self._begun.setdefault(name, self._storage.begin(_key_of(name)))

    def where(self, name: str) -> str:
        return f"{self.location}/{name}"


def open_images(images: Path | str) -> ImageFiles:
    """A folder, or what lies below a URL. Raises DatasetError, StoreError: it cannot be opened."""
    if not isinstance(images, str) or not is_url(images):
        return ImageFolder(Path(images))
    if scheme_of(images) not in OBJECT_STORAGES:
        raise DatasetError(
            f"--images {shown(images)}: images are read from a folder, s3://, gs:// and az://. "
            "Copy them to one of these, or mount them"
        )
    store, location, secrets = open_object_storage(images)
    return ImageBucket(store, location=location, secrets=secrets)


def _key_of(name: str) -> str:
    """Raises BadImageError where no object can have the name."""
    key = posixpath.normpath(name)
    try:
        nbytes = len(key.encode())
    except UnicodeEncodeError as error:
        raise BadImageError("no file can have this name") from error
    if nbytes > _LONGEST_KEY:
        cause = OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        raise BadImageError(str(cause.strerror)) from cause
    return key

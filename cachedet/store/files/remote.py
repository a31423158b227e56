"""Stores behind a zarr storage class: object storages and web servers, zip files, memory.

Each request is for at most 4 MB and has to be answered in time; `patience` decides how often it is
made, `answers` what came instead of bytes, `locations` what of it may be shown.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import errno
import functools
import json
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore, MemoryStore, ObjectStore, ZipStore

from cachedet.errors import (
    CachedetError,
    CorruptBlockError,
    CorruptMetadataError,
    RemoteStoreError,
    StoreError,
)
from cachedet.store.files import farewell
from cachedet.store.files.answers import Answer, BadAnswerError, classify
from cachedet.store.files.locations import (
    WEB,
    redacted,
    redacted_foreign,
    secrets_of,
)
from cachedet.store.files.names import (
    COMMITS,
    MANIFEST,
    METADATA,
    STAGES,
    most_nbytes,
    require_size,
)
from cachedet.store.files.patience import Deed, Patience
from cachedet.store.files.schemes import (
    NO_BUCKET,
    OBJECT_STORAGES,
    open_file_system,
    open_object_storage,
    scheme_of,
)

T = TypeVar("T")

_ON_THIS_MACHINE = (LocalStore, MemoryStore, ZipStore)
_SLOWEST = 500_000  # bytes a second in which what is sent must arrive
_REQUEST_NBYTES = 4 << 20  # so that an answer which makes progress comes in time
_ONE_REQUEST = 64 << 20  # smaller files of a storage are fetched without asking for their size
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")
_NO_RANGES = (
    "Serve the store from a server that knows range requests (nginx, Apache, any object storage; "
    "Python's http.server does not), or copy it to a folder"
)


class ZarrStorage:
    """A store behind any zarr storage class (object storage, zip file, memory), read-only.

    Its connections belong to the process that opened it: pickled it is opened again, after a fork
    it refuses (StoreError) where it would wait for a thread that only the parent has.
    """

    def __init__(
        self, store: Store, *, location: str = "", secrets: frozenset[str] = frozenset()
    ) -> None:
        options = getattr(getattr(store, "fs", None), "storage_options", None)
        self._secrets = secrets | secrets_of(options if isinstance(options, dict) else {})
        self._store = store
        self._location = location or redacted(str(store), secrets=self._secrets)
        self._process = os.getpid()
        scheme = location.partition("://")[0]
        self.is_remote = not isinstance(store, _ON_THIS_MACHINE) and scheme not in ("file", "local")
        self._is_web = scheme in WEB
        self._patience = Patience.of_environment(hide=self._hide)
        self.wait(store._ensure_open())

    def __reduce__(self) -> tuple[Callable[..., ZarrStorage], tuple[Any, ...]]:
        return _open_again, (self._store, self._location, self._secrets)

    def describe(self, key: str) -> str:
        return f"{self._location}/{key}"

    def confirm(self, read: Callable[[], T], key: str) -> T:
        try:
            return read()
        except (CorruptBlockError, CorruptMetadataError):
            if not self.is_remote:
                raise
        try:
            return read()
        except (CorruptBlockError, CorruptMetadataError) as error:
            finding = error.finding or "its checksums do not fit"
        raise self._other_bytes(key, finding)

    def read(self, key: str) -> bytes:
        most = most_nbytes(key)
        if self.is_remote:
            return self._read_whole(key, most)
        if most > _ONE_REQUEST:
            require_size(self.open(key).nbytes, key)
            return self._get(key, None)
        content = self._get(key, RangeByteRequest(0, most + 1))
        require_size(len(content), key)
        return content

    def names(self, folder: str) -> set[str] | None:
        if not self.is_remote:
            return self.wait(self._list(folder))
        try:
            names = self.ask(lambda: self._list(folder), folder)
        except FileNotFoundError:
            if scheme_of(self._location) in OBJECT_STORAGES:  # which list what is not there
                raise RemoteStoreError(f"{self._location}: {NO_BUCKET}") from None
            names = set()
        except RemoteStoreError as error:
            if not error.is_refusal:
                raise
            return None
        return names or (None if self._is_web else names)  # not every web server lists

    def open(self, key: str) -> OpenObject:
        if not self.is_remote:
            return OpenObject(self, key, self.wait(self._store.getsize(key)))
        try:
            return OpenObject(self, key, self.ask(lambda: self._store.getsize(key), key))
        except FileNotFoundError:
            pass
        raise self._incomplete(key)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Exactly these bytes. Raises EOFError where the object of this machine ends before."""
        if not self.is_remote:
            return self._get(key, RangeByteRequest(start, stop))
        pieces = []
        for begin in range(start, stop, _REQUEST_NBYTES):
            end = min(begin + _REQUEST_NBYTES, stop)
            pieces.append(self._get_piece(key, begin, end, exactly=True))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_whole(self, key: str, most: int) -> bytes:
        """A file of metadata, asked for twice where it is not one."""
        misfit = ""
        for _ in range(2):
            try:
                content = self._read_pieces(key, most)
            except FileNotFoundError:
                if key.startswith(COMMITS) or (key == MANIFEST and not self.names(COMMITS)):
                    raise
                misfit = ""
                break
            misfit = _misfit(key, content, most)
            if not misfit:
                return content
        raise self._other_bytes(key, misfit) if misfit else self._incomplete(key)

    def _read_pieces(self, key: str, most: int) -> bytes:
        if most > _ONE_REQUEST:
            nbytes = self.ask(lambda: self._store.getsize(key), key)
            if nbytes > most:
                finding = f"it has {nbytes:,} bytes, which such a file never has"
                raise self._other_bytes(key, finding)
            return self.read_range(key, 0, nbytes)
        content = bytearray()
        while len(content) <= most:
            start = len(content)
            stop = start + min(_REQUEST_NBYTES, most + 1 - start)
            piece = self._get_piece(key, start, stop, exactly=False)
            content += piece
            if len(piece) < stop - start:
                break
        return bytes(content)

    def begin(self, key: str) -> Future[bytes]:
        """Ask once for the beginning of an object, without waiting for it: see `pieces`."""
        work = self._piece(key, 0, _REQUEST_NBYTES)
        return self._begun(asyncio.wait_for(work, self._patience.request))

    def pieces(self, key: str, begun: Future[bytes] | None = None) -> Iterator[bytes]:
        """A whole object of whatever size. What `begun` failed with is asked for once more.

        Raises FileNotFoundError where there is none.
        """
        start = 0
        while True:
            stop = start + _REQUEST_NBYTES
            piece = None if start or begun is None else self._piece_of(begun)
            if piece is None:
                get = functools.partial(self._piece, key, start, stop)
                piece = self.ask(get, key, deed="fetched")
            yield piece
            start += len(piece)
            if start < stop:
                return

    def _piece_of(self, begun: Future[bytes]) -> bytes | None:
        """None where it failed, for whatever reason: asked again it is told."""
        try:
            return self._settled(begun)
        except CachedetError:
            raise
        except Exception:  # each library has its own
            return None

    async def _piece(self, key: str, start: int, stop: int) -> bytes:
        content = await self._fetch_up_to(key, start, stop)
        _require_range(content, stop - start)
        return content

    def _get_piece(self, key: str, start: int, stop: int, *, exactly: bool) -> bytes:
        async def get() -> bytes:
            content = await self._fetch_up_to(key, start, stop)
            _require_answer(content, start, stop, exactly=exactly)
            return content

        try:
            return self.ask(get, key)
        except FileNotFoundError:
            if not exactly:
                raise
        raise self._incomplete(key)

    def ask(
        self,
        make: Callable[[], Coroutine[Any, Any, T]],
        key: str,
        *,
        nbytes: int = 0,  # that are sent
        deed: Deed = "read",
    ) -> T:
        """Raises FileNotFoundError, or RemoteStoreError on any other answer than this."""

        def request(seconds: float) -> T:
            return self.wait(asyncio.wait_for(make(), seconds))

        more = nbytes / _SLOWEST
        return self._patience.ask(request, where=self.describe(key), deed=deed, more=more)

    def _get(self, key: str, byte_range: RangeByteRequest | None) -> bytes:
        return self.wait(self._fetch(key, byte_range))

    async def _fetch(self, key: str, byte_range: RangeByteRequest | None) -> bytes:
        content = await self._store.get(key, default_buffer_prototype(), byte_range)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", self.describe(key))
        return content.to_bytes()

    async def _fetch_up_to(self, key: str, start: int, stop: int) -> bytes:
        """Nothing where the object ends before `start`, which servers call an error."""
        try:
            return await self._fetch(key, RangeByteRequest(start, stop))
        except Exception as error:
            if not classify(error, self._hide).past_end:
                raise
        return b""

    async def _list(self, folder: str) -> set[str]:
        return {name.rpartition("/")[2] async for name in self._store.list_dir(folder)}

    def _hide(self, text: str) -> str:
        return redacted_foreign(text, secrets=self._secrets)

    def _incomplete(self, key: str) -> RemoteStoreError:
        return RemoteStoreError(
            f"{self.describe(key)}: there is no such object (404 Not Found, or what its storage "
            "says instead), though the store there names it. The copy there is not complete, or it "
            "is being replaced: copy the store there once more, then go on (`train-heads --resume`)"
        )

    def _other_bytes(self, key: str, finding: str) -> RemoteStoreError:
        return RemoteStoreError(
            f"{self.describe(key)}: the server sends other bytes than were written, also when it "
            f"is asked again: {finding}. Either the server, a proxy or a cache on the way answers "
            "with something else (a login page, another file), or the copy there is not whole: "
            "copy the store there once more, then go on (`train-heads --resume`)"
        )

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """What it returns or raises; it runs in the thread of all storages."""
        return self._settled(self._begun(work))

    def _begun(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if self._process != os.getpid():
            work.close()
            raise StoreError(
                f"{self._location} was opened before this process was forked, and its connections "
                "are the parent's; open the store in the child, or start it with `spawn`"
            )
        return asyncio.run_coroutine_threadsafe(work, _event_loop(self._process))

    def _settled(self, answer: Future[T]) -> T:
        while True:
            done, _ = concurrent.futures.wait([answer], timeout=farewell.POLL_SECONDS)
            if done:
                return answer.result()
            try:
                farewell.require_wanted(self._location)
            except RemoteStoreError:
                answer.cancel()
                raise


def _open_again(store: Store, location: str, secrets: frozenset[str]) -> ZarrStorage:
    return ZarrStorage(store, location=location, secrets=secrets)


class OpenObject:
    """One object of a storage, whose size is known."""

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


def open_url(url: str) -> ZarrStorage:
    """The storage behind a URL. Raises StoreError where it cannot be opened."""
    store: Store
    if scheme_of(url) in OBJECT_STORAGES:
        bucket, location, secrets = open_object_storage(url)
        store = ObjectStore(bucket, read_only=True)
    else:
        store, location, secrets = open_file_system(url)
    return ZarrStorage(store, location=location, secrets=secrets)


def _require_answer(content: bytes, start: int, stop: int, *, exactly: bool) -> None:
    """Raises BadAnswerError where this cannot be the bytes from `start` to `stop`."""
    wanted = stop - start
    if len(content) == wanted if exactly else len(content) <= wanted and start > 0:
        return
    if content[:256].lstrip().lower().startswith(_PAGES):
        what = "the server sends a web page instead of the file (a login or error page?)"
        raise BadAnswerError(Answer(what=what, passes=True, unmet=True))
    _require_range(content, wanted)
    if exactly:
        what = f"the answer ended early, after {len(content):,} of {wanted:,} bytes"
        raise BadAnswerError(Answer(what=what, passes=True))


def _require_range(content: bytes, wanted: int) -> None:
    if len(content) > wanted:
        what = (
            f"the server knows no range requests: {wanted:,} bytes were asked for, "
            f"{len(content):,} came"
        )
        raise BadAnswerError(Answer(what=what, remedy=_NO_RANGES, refused=True))


def _misfit(key: str, content: bytes, most: int) -> str:
    """Why this is no whole file of that name; empty where it can be one."""
    if len(content) > most:
        return f"it has more than {most:,} bytes, which such a file never has"
    if key.endswith(".npz"):
        is_whole = content[:4] == b"PK\x03\x04" and content[-22:-18] == b"PK\x05\x06"
        return "" if is_whole else "it is cut off, or no .npz file"
    if key == STAGES:  # its digest tells
        return ""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return "it is cut off, or not JSON"
    wanted = "zarr_format" if key.endswith(METADATA) else "checksum"
    is_ours = isinstance(values, dict) and wanted in values
    return "" if is_ours else f"it is JSON without {wanted!r}"


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

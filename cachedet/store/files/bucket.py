"""A store in an object storage, written through obstore: whole objects, no rename and no lock.

What several writers may write is made by create-if-absent. An object that is whole is never
replaced by a writer (see `settle`), so that no clock and no lease is needed: S3's ETag is a digest
of the content, and a writer that slept could otherwise replace what was committed meanwhile.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from zarr.storage import ObjectStore

from cachedet.errors import ChangedMeanwhileError, RemoteStoreError, StoreError
from cachedet.store.files import farewell
from cachedet.store.files.names import LEASES, MANIFEST
from cachedet.store.files.remote import ZarrStorage
from cachedet.store.files.schemes import NO_BUCKET, open_object_storage
from cachedet.store.files.source import ByteSource

T = TypeVar("T")
Version = dict[str, str]

OF, ATTEMPT = "cachedet-of", "cachedet-attempt"  # user metadata of an object
MOST_NBYTES = 5 * 10**9  # of one request to S3; larger ones come in parts, without a condition
_TRIES = 20  # of what others undo again and again
_PAUSE_SECONDS = 0.1
_AT_ONCE = 8  # files of a call of `put` or `remove`


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """An object as it lies there."""

    content: bytes
    of: str  # what its writer said it belongs to; empty where nothing is said
    attempt: str
    version: Version  # for a request that shall replace just this one


class Bucket:
    """A store in an object storage, which obstore has opened."""

    def __init__(self, store: Any, *, location: str, secrets: frozenset[str] = frozenset()) -> None:
        self.folder: Path | None = None
        storage = ObjectStore(store, read_only=True)
        self._storage = ZarrStorage(storage, location=location, secrets=secrets)
        self.source: ByteSource = self._storage
        self._store = store
        self._location = location
        self._manifest: Version | None = None  # its version, inside `changing`

    def __str__(self) -> str:
        return self._location

    def has(self, key: str) -> bool:
        return self.find(key) is not None

    def sizes(self, folder: str = "") -> dict[str, int]:
        import obstore

        async def collect() -> list[Any]:
            return list(await obstore.list(self._store, folder or None).collect_async())

        return {one["path"]: one["size"] for one in self._ask(collect, folder)}

    def names(self) -> set[str]:
        """Names at the top, of objects and of what is like a folder."""
        import obstore

        async def collect() -> Any:
            return await obstore.list_with_delimiter_async(self._store)

        found = self._ask(collect, "")
        paths = [*found["common_prefixes"], *(one["path"] for one in found["objects"])]
        return {path.rstrip("/").rpartition("/")[2] for path in paths}

    def put(self, files: Mapping[str, bytes]) -> None:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(lambda pair: self._put(*pair, mode="overwrite"), files.items()))

    def remove(self, keys: Iterable[str]) -> None:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(self._remove, keys))

    def _remove(self, key: str) -> None:
        import obstore

        async def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                await obstore.delete_async(self._store, key)

        self._ask(delete, key)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        found = self.find(MANIFEST)
        self._manifest = None if found is None else found.version
        try:
            yield
        finally:
            self._manifest = None

    def put_manifest(self, content: bytes) -> None:
        """A failed answer may hide that it was written: then it is ours that lies there."""
        assert self._manifest is not None, "outside of `changing`"
        written = self._put(MANIFEST, content, mode=self._manifest)
        if written is None:
            found = self.find(MANIFEST)
            if found is None or found.content != content:
                raise ChangedMeanwhileError(
                    f"{self} was changed by another process meanwhile; nothing was changed by this "
                    "one. Run the same command again: it compares with what the store has now"
                )
            written = found.version
        self._manifest = written

    def require_space(self, nbytes: int) -> None:
        """Object storages have room."""

    def find(self, key: str) -> Found | None:
        """An object as it lies there now; None where there is none."""
        import obstore

        async def get() -> Found:
            answer = await obstore.get_async(self._store, key)
            marks = {name.lower(): str(text) for name, text in answer.attributes.items()}
            return Found(
                content=bytes(await answer.bytes_async()),
                of=marks.get(OF, ""),
                attempt=marks.get(ATTEMPT, ""),
                version=_version_of(answer.meta),
            )

        try:
            return self._storage.ask(get, key)
        except FileNotFoundError:
            return None

    def create(self, key: str, content: bytes, *, of: str = "") -> bool:
        """Make an object that is not there. False where another one is: it stays."""
        attempt = _new_attempt()
        for _ in range(_TRIES):
            if self._put(key, content, mode="create", of=of, attempt=attempt) is not None:
                return True
            found = self.find(key)
            if found is not None:
                return found.attempt == attempt  # ours, whose answer was lost
            farewell.pause(_PAUSE_SECONDS, where=self.source.describe(key))  # S3's 409: not settled
        raise self._never_settles(key)

    def settle(self, key: str, content: bytes, *, of: str, stays: Callable[[Found], bool]) -> bytes:
        """Make an object for good, or take the one that is there; returns what lies there.

        `stays` says whether one that is there shall stay; every writer must judge it alike. Else it
        is replaced, unless somebody else was faster.
        """
        for _ in range(_TRIES):
            if self.create(key, content, of=of):
                return content
            found = self.find(key)
            if found is None:
                continue
            if found.content == content or stays(found):
                return found.content
            if self.replace(key, content, found, of=of):
                return content
        raise self._never_settles(key)

    def replace(self, key: str, content: bytes, found: Found, *, of: str = "") -> bool:
        """Write an object in place of exactly the one that was found."""
        if self._put(key, content, mode=found.version, of=of) is not None:
            return True
        now = self.find(key)
        return now is not None and now.content == content

    def require_writable(self) -> None:
        """Try what a writer needs, with an object that is removed again.

        Raises StoreError: there is no such bucket, no permission, credentials that expired, or a
        storage that cannot create an object only where there is none.
        """
        key = f"{LEASES}/probe-{_new_attempt()}"
        try:
            self._put(key, b"1", mode="overwrite")
            replaces = self._replaces(key)
            found = self.find(key)
        finally:
            with contextlib.suppress(StoreError):  # the first error is the one to be told
                self.remove([key])
        if replaces or found is None or found.content != b"1":
            raise StoreError(
                f"{self}: this storage cannot create an object only where there is none (it "
                "ignores or refuses If-None-Match), so that writers cannot agree there. Extract "
                "into a folder, on several machines a shared one (--rank and --world-size divide "
                "the work), and copy the store there"
            )

    def _replaces(self, key: str) -> bool:
        """Whether it does not keep an object from being created once more."""
        try:
            return self._put(key, b"2", mode="create") is not None
        except RemoteStoreError as error:
            if not error.is_refusal:
                raise
            return True

    def _put(
        self, key: str, content: bytes, *, mode: Any, of: str = "", attempt: str = ""
    ) -> Version | None:
        """The version that was written; None where the condition of `mode` does not hold."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        if len(content) > MOST_NBYTES:
            raise StoreError(
                f"{self.source.describe(key)} would have {len(content) / 1e9:.1f} GB, and one "
                f"request takes {MOST_NBYTES / 1e9:.0f} GB; choose a smaller --block-size"
            )
        marks = {OF: of, ATTEMPT: attempt}
        attributes = {name: text for name, text in marks.items() if text}

        async def put() -> Version | None:
            try:
                written = await obstore.put_async(
                    self._store,
                    key,
                    content,
                    mode=mode,
                    attributes=attributes or None,
                    use_multipart=False,
                )
            except (AlreadyExistsError, PreconditionError):
                return None
            except FileNotFoundError:
                if isinstance(mode, str):
                    raise
                return None  # nothing is there to be replaced
            return _version_of(written)

        return self._ask(put, key, nbytes=len(content))

    def _ask(self, make: Callable[[], Coroutine[Any, Any, T]], key: str, *, nbytes: int = 0) -> T:
        try:
            return self._storage.ask(make, key, nbytes=nbytes, deed="written")
        except FileNotFoundError:
            pass
        raise RemoteStoreError(f"{self} cannot be written: {NO_BUCKET}, or make it")

    def _never_settles(self, key: str) -> RemoteStoreError:
        return RemoteStoreError(
            f"{self.source.describe(key)} is made and removed again while this process writes it. "
            "Let nobody prune or copy there meanwhile, then run the same command again"
        )


def open_bucket(url: str) -> Bucket:
    """The object storage behind a URL, to write there. Raises StoreError: it cannot be opened."""
    store, location, secrets = open_object_storage(url)
    return Bucket(store, location=location, secrets=secrets)


def _version_of(values: Any) -> Version:
    return {name: values[name] for name in ("e_tag", "version") if values.get(name)}


def _new_attempt() -> str:
    return uuid.uuid4().hex

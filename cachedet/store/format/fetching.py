"""Reading many chunks of a server at once: few requests, beside each other, and a copy on the disk.

Each request is waited for, so that many are under way. Chunks of one shard that lie near each other
are one request, and so is a shard of which most is wanted. What does not arrive as it was committed
is read again alone, by `ChunkReader.read`, which finds out why.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cachedet.errors import CorruptBlockError, StoreError
from cachedet.store.files.disk_cache import DiskCache
from cachedet.store.files.source import OpenFile
from cachedet.store.format.chunks import Chunk, ChunkReader, Shard, unpack_chunk
from cachedet.store.format.shards import CHECKSUM_NBYTES, index_nbytes, pack_index

_MOST_REQUESTS = 64  # to a server at once
_PIECE = 1 << 20  # bytes of a request: as many at once must come in time over a slow line, too
_NEAR = 256 << 10  # bytes between two chunks that are fetched with them
_MOST_OF_IT = 0.5  # of a shard, from which on all between its chunks is fetched, too

S = TypeVar("S")
T = TypeVar("T")
Place = tuple[Shard, int]
"""A shard and the slot of an image in it."""

Fetched = dict[tuple[str, int], "memoryview | None"]
"""Bytes of chunks by key of their shard and slot."""

_Opened = tuple[OpenFile, NDArray[np.int64]]


@dataclass(kw_only=True)
class _Span:
    """Bytes of one shard that are fetched together, and whose they are."""

    file: OpenFile
    start: int
    stop: int
    chunks: list[tuple[int, int, int]] = field(default_factory=list)  # number, start, stop
    content: bytearray = field(default_factory=bytearray)


class RemoteChunks:
    """Reads chunks of a remote store from any thread, first from its copy on this machine."""

    def __init__(self, reader: ChunkReader, *, slots: int, cache: DiskCache | None = None) -> None:
        self._reader = reader
        self._slots = slots
        self._cache = cache
        self._copies = None if cache is None else ChunkReader(cache, slots)
        self._copy_of: dict[str, Shard | None] = {}  # by key in the store

    def fetch(self, places: Sequence[Place]) -> Fetched:
        """What these chunks have no copy of, of whatever worth; `read` takes it.

        It computes next to nothing, so that many threads may do this beside those that decode.
        Raises RemoteStoreError.
        """
        absent = [place for place in dict.fromkeys(places) if not self._has_copy(*place)]
        contents = self._fetch(absent)
        return {
            (shard.key, slot): content
            for (shard, slot), content in zip(absent, contents, strict=True)
        }

    def read(
        self, chunks: Sequence[Chunk], *, packed: bool = False, fetched: Fetched | None = None
    ) -> list[bytes]:
        """Fill the `out` of each; with `packed`, their bytes as they are stored.

        Raises what `ChunkReader.read` raises.
        """
        known = fetched or {}
        found: list[bytes | None] = []
        for chunk in chunks:
            content = known.get((chunk.shard.key, chunk.slot))
            if content is not None:
                found.append(self._accept(chunk, content, packed))
            else:
                found.append(self._read_copy(chunk, packed))
        absent = [number for number, content in enumerate(found) if content is None]
        if absent:
            contents = self._fetch([chunks[number][:2] for number in absent])
            for number, content in zip(absent, contents, strict=True):
                found[number] = self._accept(chunks[number], content, packed)
        return [content or b"" for content in found]

    def _has_copy(self, shard: Shard, slot: int) -> bool:
        """Whether a copy ends as was committed: a hole does not. Who reads it compares the rest."""
        copy = None if self._copies is None else self._find_copy(shard)
        if self._copies is None or copy is None:
            return False
        end = bytearray(CHECKSUM_NBYTES)
        try:
            file, table = self._copies.find(copy)
            file.read_into(int(table[slot].sum()) - CHECKSUM_NBYTES, [memoryview(end)])
        except (StoreError, OSError, EOFError):
            return False
        return end == shard.record.checksum_of(slot)

    def _read_copy(self, chunk: Chunk, packed: bool) -> bytes | None:
        """None where it has no copy that is what was committed."""
        if self._copies is None:
            return None
        shard = self._find_copy(chunk.shard)
        if shard is None:
            return None
        try:
            content = self._copies.read_once(Chunk(shard, chunk.slot, chunk.out))
        except StoreError:
            return None
        return bytes(content) if packed else b""

    def _find_copy(self, shard: Shard) -> Shard | None:
        """The shard as it is found in the disk cache; None where it can never be there."""
        if shard.key not in self._copy_of:
            key = DiskCache.key_of(shard.record.digest)
            self._copy_of[shard.key] = None if key is None else replace(shard, key=key)
        return self._copy_of[shard.key]

    def _fetch(self, places: Sequence[Place]) -> list[memoryview | None]:
        """The bytes of each chunk, of whatever worth; None where its shard has no good index."""
        shards = {shard.key: shard for shard, _ in places}
        opened = dict(zip(shards, _beside(self._open, shards.values()), strict=True))
        wanted: dict[str, list[tuple[int, int, int]]] = {}
        for number, (shard, slot) in enumerate(places):
            found = opened[shard.key]
            if found is not None:
                offset, nbytes = found[1][slot].tolist()
                wanted.setdefault(shard.key, []).append((number, offset, offset + nbytes))
        spans = [span for key, ranges in wanted.items() for span in _spans(opened[key], ranges)]
        requests = [
            (span, start) for span in spans for start in range(span.start, span.stop, _PIECE)
        ]
        _beside(_request, requests)
        contents: list[memoryview | None] = [None] * len(places)
        for span in spans:
            content = memoryview(span.content)
            for number, start, stop in span.chunks:
                contents[number] = content[start - span.start : stop - span.start]
        return contents

    def _open(self, shard: Shard) -> _Opened | None:
        try:
            return self._reader.find(shard)
        except CorruptBlockError:
            return None

    def _accept(self, chunk: Chunk, content: memoryview | None, packed: bool) -> bytes:
        """The bytes of a chunk once they are found to be those; the disk cache keeps them."""
        if content is not None:
            try:
                unpack_chunk(chunk, content)
            except CorruptBlockError:
                pass
            else:
                self._keep(chunk, content)
                return bytes(content) if packed else b""
        return bytes(self._reader.read(chunk))

    def _keep(self, chunk: Chunk, content: memoryview) -> None:
        copy = None if self._cache is None else self._find_copy(chunk.shard)
        if self._cache is None or copy is None:
            return
        _, table = self._reader.find(chunk.shard)
        nbytes = chunk.shard.record.nbytes
        index = pack_index(table[:, 1].tolist(), slots=self._slots)
        offset = int(table[chunk.slot, 0])
        pieces = {offset: content, nbytes - index_nbytes(self._slots): memoryview(index)}
        self._cache.keep(copy.key, nbytes, pieces=pieces)


def _spans(opened: _Opened | None, ranges: list[tuple[int, int, int]]) -> list[_Span]:
    """What is fetched of one shard for ranges of it (number, start, stop)."""
    assert opened is not None
    file, table = opened
    ranges.sort(key=lambda of_one: of_one[1:])
    wanted = sum(stop - start for _, start, stop in ranges)
    is_most = wanted >= _MOST_OF_IT * int(table[:, 1].sum())
    spans: list[_Span] = []
    for number, start, stop in ranges:
        if not spans or not (is_most or start - spans[-1].stop <= _NEAR):
            spans.append(_Span(file=file, start=start, stop=stop))
        spans[-1].stop = max(spans[-1].stop, stop)
        spans[-1].chunks.append((number, start, stop))
    for span in spans:
        span.content = bytearray(span.stop - span.start)
    return spans


def _request(request: tuple[_Span, int]) -> None:
    span, start = request
    stop = min(start + _PIECE, span.stop)
    place = memoryview(span.content)[start - span.start : stop - span.start]
    span.file.read_into(start, [place])


def _beside(act: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """What `act` gives for each, called in as many threads as requests may be under way."""
    return list(_readers(os.getpid()).map(act, items))


@functools.cache
def _readers(process: int) -> ThreadPoolExecutor:
    """Threads of a process that wait for servers; they compute next to nothing."""
    return ThreadPoolExecutor(_MOST_REQUESTS, thread_name_prefix="storage-reader")

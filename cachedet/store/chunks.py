"""Reading single pictures out of shards: cached index, bounded open files, every byte checked."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.errors import StoreError
from cachedet.store.codec import Part
from cachedet.store.records import ShardRecord
from cachedet.store.shards import (
    check_crc32c,
    corrupt,
    index_nbytes,
    parse_index,
    raw_bytes,
    unpack_zstd,
)
from cachedet.store.source import ByteSource, OpenFile, file_limit

_MOST_INDICES = 65_536  # about 0.5 kB each


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """One picture's part: where it lies and where it shall go."""

    key: str  # of the shard
    shard: ShardRecord  # as committed
    used: int  # slots of the shard that are in use
    slot: int
    part: Part
    out: NDArray[Any]  # of part.shape, contiguous


@dataclass(frozen=True, eq=False)
class _Index:
    table: NDArray[np.int64]  # (used, 2) offset and length
    identity: tuple[int, ...]  # of the file it was read from


class ChunkReader:
    """Reads chunks from any thread. Open files are bounded, and so is its memory.

    It keeps at most `most_files` files open and the parsed index of at most 65,536 shards, and per
    thread one buffer as large as the largest compressed chunk.
    """

    def __init__(self, source: ByteSource, *, slots: int, most_files: int | None = None) -> None:
        self._source = source
        self._slots = slots
        self._most_files = most_files if most_files is not None else file_limit()
        self._files: OrderedDict[str, tuple[OpenFile, _Index]] = OrderedDict()
        self._indices: OrderedDict[str, _Index] = OrderedDict()
        self._lock = threading.Lock()
        self._scratch = threading.local()

    def read(self, chunk: Chunk) -> None:
        """Fill `chunk.out`. Raises CorruptBlockError: the bytes are not what was committed."""
        file, index = self._shard(chunk)
        offset, nbytes = index.table[chunk.slot].tolist()
        packed = self._buffer(nbytes if chunk.part.packing == "zstd" else 4)
        try:
            if chunk.part.packing == "zstd":
                file.read_into(offset, [packed])
            else:
                file.read_into(offset, [raw_bytes(chunk.out).data, packed])
        except (OSError, EOFError) as error:
            raise corrupt(self._source.describe(chunk.key), f"reading failed: {error}") from error
        if chunk.part.packing == "zstd":
            unpack_zstd(packed, chunk.out, where=chunk.key)
        else:
            check_crc32c(chunk.out, packed, where=chunk.key)

    def _shard(self, chunk: Chunk) -> tuple[OpenFile, _Index]:
        with self._lock:
            found = self._files.get(chunk.key)
            if found is not None:
                self._files.move_to_end(chunk.key)
                return found
        file = self._open(chunk)
        opened = file, self._index_of(chunk, file)
        with self._lock:
            self._files[chunk.key] = opened
            while len(self._files) > self._most_files:
                self._files.popitem(last=False)
        return opened

    def _open(self, chunk: Chunk) -> OpenFile:
        where = self._source.describe(chunk.key)
        try:
            file = self._source.open(chunk.key)
        except FileNotFoundError as error:
            raise corrupt(where, "the shard file is missing") from error
        except PermissionError as error:
            raise StoreError(f"{where} may not be read: {error.strerror}") from error
        except OSError as error:
            raise corrupt(where, f"the shard file cannot be opened ({error.strerror})") from error
        if file.nbytes != chunk.shard.nbytes:
            reason = f"the shard has {file.nbytes} bytes, {chunk.shard.nbytes} were committed"
            raise corrupt(where, reason)
        return file

    def _index_of(self, chunk: Chunk, file: OpenFile) -> _Index:
        known = self._indices.get(chunk.key)
        if known is not None:
            if known.identity == file.identity:
                return known
            raise StoreError(
                f"{self._source.describe(chunk.key)} was written anew while this store was open; "
                "open the store again (`train-heads --resume` continues)"
            )
        content = bytearray(index_nbytes(self._slots))
        where = self._source.describe(chunk.key)
        if file.nbytes < len(content):
            raise corrupt(where, "the shard is shorter than its index")
        file.read_into(file.nbytes - len(content), [memoryview(content)])
        table = parse_index(
            bytes(content), used=chunk.used, file_nbytes=file.nbytes, part=chunk.part, where=where
        )
        index = _Index(table, file.identity)
        with self._lock:
            self._indices[chunk.key] = index
            while len(self._indices) > _MOST_INDICES:
                self._indices.popitem(last=False)
        return index

    def _buffer(self, nbytes: int) -> memoryview:
        """Bytes of this thread, used again by its next chunk."""
        held: bytearray | None = getattr(self._scratch, "held", None)
        if held is None or len(held) < nbytes:
            held = self._scratch.held = bytearray(max(nbytes, 4096))
        return memoryview(held)[:nbytes]

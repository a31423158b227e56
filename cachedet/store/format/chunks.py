"""Reading single images out of shards: cached index, bounded open files, every byte checked."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cachedet.errors import CorruptBlockError, StoreError
from cachedet.store.codecs.codec import Part
from cachedet.store.files.source import ByteSource, OpenFile, file_limit
from cachedet.store.format.commits import ShardRecord, read_record
from cachedet.store.format.layout import Block
from cachedet.store.format.shards import (
    CHECKSUM_NBYTES,
    check_crc32c,
    corrupt,
    index_nbytes,
    parse_index,
    raw_bytes,
    unpack_zstd,
    unreadable,
)
from cachedet.structures import SizeHW


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedFeatures:
    """Stored arrays of n images of one bucket, checked but not decoded."""

    bucket: SizeHW
    count: int  # n
    arrays: dict[str, dict[str, NDArray[Any]]]  # level -> part -> (n, *part.shape)


_MOST_INDICES = 65_536  # about 0.5 kB each


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """One committed shard file, and what a chunk in it is."""

    key: str
    where: str  # file and block, for people
    block: Block
    array: str  # as in `Layout.parts`
    part: Part
    record: ShardRecord


class Chunk(NamedTuple):
    """One image's part: where it lies and where it shall go."""

    shard: Shard
    slot: int
    out: NDArray[Any]  # of shard.part.shape, as `Part.empty` makes it


@dataclass(frozen=True, eq=False)
class _Index:
    table: NDArray[np.int64]  # (used, 2) offset and length
    identity: tuple[int, ...]  # of the file it was read from


class ChunkReader:
    """Reads chunks from any thread. Open files are bounded, and so is its memory.

    It keeps at most `file_limit()` files open (of a server the sizes of 65,536 objects), the parsed
    index of at most 65,536 shards, and per thread one buffer as large as the largest compressed
    chunk. The checksum a chunk ends with
    must be the one in its commit record, whatever storage it comes from: a shard in the wrong place
    or written anew is an error, unless it holds the committed bytes again.
    """

    def __init__(self, source: ByteSource, slots: int) -> None:
        self._source = source
        self._slots = slots
        self._most_files = _MOST_INDICES if source.is_remote else file_limit()
        self._start()

    def _start(self) -> None:
        """Make what belongs to one process: open files and locks."""
        self._files: OrderedDict[str, tuple[OpenFile, _Index]] = OrderedDict()
        self._indices: OrderedDict[str, _Index] = OrderedDict()
        self._lock = threading.Lock()
        self.scratch = threading.local()  # memory that a thread uses again for its next read
        self._process = os.getpid()  # last: another thread that sees it sees the rest

    def __reduce__(self) -> tuple[type[ChunkReader], tuple[ByteSource, int]]:
        return ChunkReader, (self._source, self._slots)

    def read(self, chunk: Chunk) -> memoryview:
        """Fill `chunk.out`.

        Returns what followed or made it in the file: its checksum, or the zstd frame. It is this
        thread's until its next read.

        Raises CorruptBlockError, naming file and block, where the bytes are not what was committed;
        StoreError where they cannot be read now, or came from a server, which proves no damage.
        """
        try:
            return self.read_once(chunk)
        except CorruptBlockError:
            self._require_unchanged(chunk.shard)
            if not self._source.is_remote:
                raise
        return self._source.confirm(partial(self._read_anew, chunk), chunk.shard.key)

    def _read_anew(self, chunk: Chunk) -> memoryview:
        """Nothing that is known of the shard is believed."""
        with self._lock:
            self._files.pop(chunk.shard.key, None)
            self._indices.pop(chunk.shard.key, None)
        return self.read_once(chunk)

    def find(self, shard: Shard) -> tuple[OpenFile, NDArray[np.int64]]:
        """A shard's file, and the (used, 2) offsets and lengths of its chunks.

        Raises as `read_once`.
        """
        file, index = self._open_shard(shard)
        return file, index.table

    def read_once(self, chunk: Chunk) -> memoryview:
        """As `read`; what is not as committed is CorruptBlockError, whatever is the cause."""
        shard, slot = chunk.shard, chunk.slot
        out = shard.part.in_order(chunk.out)
        file, index = self._open_shard(shard)
        offset, nbytes = index.table[slot].tolist()
        is_compressed = shard.part.packing == "zstd"
        packed = self._buffer(nbytes) if is_compressed else memoryview(bytearray(CHECKSUM_NBYTES))
        raw = raw_bytes(out)
        _read_into(file, offset, [packed] if is_compressed else [raw.data, packed], shard=shard)
        _require_committed(chunk, packed)
        if is_compressed:
            unpack_zstd(packed, out, where=shard.where)
        else:
            check_crc32c(raw, packed, where=shard.where)
        return packed

    def _require_unchanged(self, shard: Shard) -> None:
        """Raises CorruptBlockError where the block is no longer the one this reader knows."""
        try:
            record = read_record(self._source, shard.block).shards.get(shard.array)
        except (FileNotFoundError, CorruptBlockError):
            if self._source.is_remote:  # what lies between may have answered
                return
            happened = "was withdrawn, or is being written anew,"
        except StoreError:
            return  # nothing is known, so the first error stands
        else:
            if record == shard.record:
                return
            happened = "was written anew"
        raise CorruptBlockError(
            f"{shard.where} {happened} while this store was open; open the store again "
            "(`train-heads --resume` continues)"
        )

    def _open_shard(self, shard: Shard) -> tuple[OpenFile, _Index]:
        if self._process != os.getpid():  # forked: a thread that is gone may hold the lock
            self._start()
        with self._lock:
            known = self._files.get(shard.key)
            if known is not None:
                self._files.move_to_end(shard.key)
                return known
        file = self._open(shard)
        opened = file, self._index_of(shard, file)
        with self._lock:
            self._files[shard.key] = opened
            while len(self._files) > self._most_files:
                self._files.popitem(last=False)
        return opened

    def _open(self, shard: Shard) -> OpenFile:
        try:
            file = self._source.open(shard.key)
        except FileNotFoundError as error:
            raise corrupt(shard.where, "the shard file is missing") from error
        except OSError as error:
            raise unreadable(shard.where, error) from error
        if file.nbytes != shard.record.nbytes:
            reason = f"the shard has {file.nbytes} bytes, {shard.record.nbytes} were committed"
            raise corrupt(shard.where, reason)
        return file

    def _index_of(self, shard: Shard, file: OpenFile) -> _Index:
        known = self._indices.get(shard.key)
        if known is not None and known.identity == file.identity:
            return known
        content = bytearray(index_nbytes(self._slots))
        if file.nbytes < len(content):
            raise corrupt(shard.where, "the shard is shorter than its index")
        _read_into(file, file.nbytes - len(content), [memoryview(content)], shard=shard)
        table = parse_index(
            bytes(content),
            used=len(shard.block.rows),
            file_nbytes=file.nbytes,
            part=shard.part,
            where=shard.where,
        )
        index = _Index(table, file.identity)
        with self._lock:
            self._indices[shard.key] = index
            while len(self._indices) > _MOST_INDICES:
                self._indices.popitem(last=False)
        return index

    def _buffer(self, nbytes: int) -> memoryview:
        """Bytes of this thread, used again by its next chunk."""
        held: bytearray | None = getattr(self.scratch, "held", None)
        if held is None or len(held) < nbytes:
            held = self.scratch.held = bytearray(max(nbytes, 4096))
        return memoryview(held)[:nbytes]


def _read_into(file: OpenFile, offset: int, buffers: Sequence[memoryview], *, shard: Shard) -> None:
    try:
        file.read_into(offset, buffers)
    except EOFError as error:
        raise corrupt(shard.where, f"the shard was cut off ({error})") from error
    except OSError as error:
        raise unreadable(shard.where, error) from error


def unpack_chunk(chunk: Chunk, packed: memoryview) -> None:
    """Fill `chunk.out` from the bytes of the whole chunk. Raises CorruptBlockError."""
    shard = chunk.shard
    out = shard.part.in_order(chunk.out)
    _require_committed(chunk, packed)
    if shard.part.packing == "zstd":
        unpack_zstd(packed, out, where=shard.where)
        return
    raw = raw_bytes(out)
    raw.data[:] = packed[:-CHECKSUM_NBYTES]
    check_crc32c(raw, packed[-CHECKSUM_NBYTES:], where=shard.where)


def _require_committed(chunk: Chunk, packed: memoryview) -> None:
    """Raises CorruptBlockError where these bytes end with another checksum than was committed."""
    shard, slot = chunk.shard, chunk.slot
    checksum, committed = bytes(packed[-CHECKSUM_NBYTES:]), shard.record.checksum_of(slot)
    if checksum != committed:
        reason = f"image {slot} of the block ends with the checksum {checksum.hex()}, "
        reason += f"{committed.hex()} was committed: another shard lies in its place"
        raise corrupt(shard.where, reason)

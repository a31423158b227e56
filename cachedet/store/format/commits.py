"""Commit records: which blocks exist, and how their bytes must look."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from cachedet.errors import CorruptBlockError
from cachedet.store.files.names import COMMITS
from cachedet.store.files.source import ByteSource, OpenFile
from cachedet.store.format.layout import Block, commit_key
from cachedet.store.format.manifest import digest_json
from cachedet.store.format.plan import StorePlan
from cachedet.store.format.shards import CHECKSUM_NBYTES, proves_damage, unreadable

_READ_NBYTES = 1 << 20
_AT_ONCE = 16  # records of a server


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One whole shard file: its length, its content, and the end of each chunk.

    Every read compares the end of the chunk: no shard of another block, and none written anew
    since the record was read, passes for this one.
    """

    nbytes: int
    digest: str  # 128-bit xxh3 of the file
    chunk_checksums: bytes  # the last 4 bytes of every chunk, in slot order

    def checksum_of(self, slot: int) -> bytes:
        return self.chunk_checksums[CHECKSUM_NBYTES * slot : CHECKSUM_NBYTES * (slot + 1)]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "chunk_checksums": self.chunk_checksums.hex()}

    @classmethod
    def from_json(cls, values: dict[str, Any], *, images: int) -> ShardRecord:
        """Raises ValueError or TypeError where a field is not what a writer writes."""
        checksums = bytes.fromhex(values["chunk_checksums"])
        shard = cls(**{**values, "chunk_checksums": checksums})
        if type(shard.nbytes) is not int or type(shard.digest) is not str:
            raise TypeError("nbytes must be a whole number and digest a text")
        if len(checksums) != CHECKSUM_NBYTES * images:
            raise ValueError(f"{len(checksums)} bytes of chunk checksums for {images} images")
        return shard


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What a codec did to the values of one level: sums over all cells of the images."""

    values: int
    signal: float  # sum of squares of the true values
    noise: float  # sum of squares of the errors
    saturated: int  # codes cut off at the end of their range

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Quality:
        """Raises ValueError or TypeError where a field is not what a writer writes."""
        quality = cls(**values)
        counts, sums = (quality.values, quality.saturated), (quality.signal, quality.noise)
        if {*map(type, counts)} != {int} or {*map(type, sums)} != {float}:
            raise TypeError("quality must be two whole and two floating-point numbers")
        if not all(0 <= number < math.inf for number in (*counts, *sums)):
            raise ValueError("quality must be numbers from 0")
        return quality

    def __add__(self, other: Quality) -> Quality:
        return Quality(
            values=self.values + other.values,
            signal=self.signal + other.signal,
            noise=self.noise + other.noise,
            saturated=self.saturated + other.saturated,
        )

    @property
    def decibels(self) -> float | None:
        """Signal-to-noise ratio; None where nothing was lost."""
        if self.noise == 0 or self.signal == 0:
            return None
        return 10 * math.log10(self.signal / self.noise)

    @property
    def saturation(self) -> float:
        return self.saturated / self.values if self.values else 0.0


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """Written after every shard of a block is on the disk; without it the block does not exist."""

    block: str
    image_ids: tuple[int | None, ...]  # None: it was not in the store when this was written
    fingerprint: str
    shards: dict[str, ShardRecord]  # by array, such as "C3/codes"
    quality: dict[str, Quality]  # by level

    @property
    def nbytes(self) -> int:
        """Of its shards."""
        return sum(shard.nbytes for shard in self.shards.values())

    @property
    def checksum(self) -> str:
        """Of all it says, the shards' digests among it."""
        return digest_json(self._body())

    def to_bytes(self) -> bytes:
        return json.dumps({**self._body(), "checksum": self.checksum}, indent=1).encode()

    def _body(self) -> dict[str, Any]:
        return {
            "block": self.block,
            "image_ids": list(self.image_ids),
            "fingerprint": self.fingerprint,
            "shards": {array: shard.to_json() for array, shard in self.shards.items()},
            "quality": {level: vars(quality) for level, quality in self.quality.items()},
        }

    @classmethod
    def from_bytes(cls, content: bytes, *, where: str) -> CommitRecord:
        """Raises CorruptBlockError where the record is damaged."""
        try:
            body = json.loads(content)
            checksum = body.pop("checksum")
            if checksum != digest_json(body):
                raise ValueError("its checksum does not match")
            image_ids = tuple(body["image_ids"])
            return cls(
                block=body["block"],
                image_ids=image_ids,
                fingerprint=body["fingerprint"],
                shards={
                    array: ShardRecord.from_json(shard, images=len(image_ids))
                    for array, shard in body["shards"].items()
                },
                quality={
                    level: Quality.from_json(values) for level, values in body["quality"].items()
                },
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptBlockError(
                f"{where}: the commit record is damaged ({error}). The same `cachedet extract` "
                "again writes this block anew"
            ) from error


def read_record(source: ByteSource, block: Block) -> CommitRecord:
    """The record of a block, whole, of whatever store.

    Raises FileNotFoundError where there is none, CorruptBlockError where it is damaged or no file,
    StoreError where it cannot be read now, which proves no damage.
    """
    key = commit_key(block)
    try:
        content = source.read(key)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(source.describe(key), error) from error
    return CommitRecord.from_bytes(content, where=source.describe(key))


def read_records(plan: StorePlan) -> dict[str, CommitRecord]:
    """The records of all committed blocks, by block name.

    Raises CorruptBlockError where one is damaged or of another store or block, StoreError where
    one cannot be read now, which proves no damage.
    """
    present = plan.source.names(COMMITS)
    blocks = [b for b in plan.needed if present is None or f"{b.name}.json" in present]
    if plan.source.is_remote:  # each request is waited for
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            found = list(threads.map(partial(_read_fitting, plan), blocks))
    else:
        found = [_read_fitting(plan, block) for block in blocks]
    records = zip(blocks, found, strict=True)
    return {block.name: record for block, record in records if record is not None}


def _read_fitting(plan: StorePlan, block: Block) -> CommitRecord | None:
    try:
        record = read_record(plan.source, block)
    except FileNotFoundError:  # since the listing: somebody writes the block anew
        return None
    misfit = _find_misfit(plan, block, record)
    if misfit is not None:
        raise CorruptBlockError(
            f"{plan.source.describe(commit_key(block))} belongs to another store or block: "
            f"{misfit}; the same `cachedet extract` again writes this block anew"
        )
    return None if _lacks_images(plan, block, record) else record


def find_held(plan: StorePlan, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of these rows that have features in every view, as far as records and lengths tell.

    Raises StoreError where a block cannot be read now.
    """
    lost: set[int] = set()
    wanted = {*rows.tolist()}
    for block in plan.blocks:
        asked = wanted.intersection(block.rows)
        if asked:
            lost |= asked - _rows_in(plan, block)
    return np.array(sorted(wanted - lost), dtype=np.int64)


def _rows_in(plan: StorePlan, block: Block) -> set[int]:
    """The rows of which a block has features; none where it is not whole."""
    try:
        _, fault = check_block(plan, block, deep=False)
        ids = read_record(plan.source, block).image_ids
    except (FileNotFoundError, CorruptBlockError):
        return set()
    pairs = zip(block.rows, ids, strict=True)
    return {row for row, image_id in pairs if image_id is not None} if fault is None else set()


class Fault(NamedTuple):
    """Something of a committed block that is not what was committed."""

    where: str
    reason: str


def check_block(plan: StorePlan, block: Block, *, deep: bool) -> tuple[int, Fault | None]:
    """Bytes of the committed shards, and the first fault of them or their record.

    Lengths are always compared; `deep` reads every byte and compares digests too.

    Raises FileNotFoundError where it was never committed, or without images that the store has
    now; StoreError where it cannot be read now, which proves no damage.
    """
    where = plan.source.describe(commit_key(block))
    try:
        record = read_record(plan.source, block)
    except CorruptBlockError as error:
        return 0, Fault(where, str(error).removeprefix(f"{where}: "))
    nbytes = record.nbytes
    misfit = _find_misfit(plan, block, record)
    if misfit is not None:
        return nbytes, Fault(where, f"the record belongs to another store or block: {misfit}")
    if _lacks_images(plan, block, record):
        raise FileNotFoundError(where)
    for array, key in plan.layout.shard_keys(block).items():
        reason = _shard_fault(plan.source, key, record.shards[array], deep=deep)
        if reason is not None:
            return nbytes, Fault(plan.source.describe(key), reason)
    return nbytes, None


def is_recorded(plan: StorePlan, block: Block) -> bool:
    """Whether a whole record of all its images is there; its shards are not looked at.

    Raises StoreError where it cannot be read now.
    """
    try:
        return _read_fitting(plan, block) is not None
    except CorruptBlockError:
        return False


def lacks_images(plan: StorePlan, block: Block) -> bool:
    """Whether its record is of a time when images that are back now were out of the store.

    Raises StoreError where it cannot be read now.
    """
    try:
        return _lacks_images(plan, block, read_record(plan.source, block))
    except (FileNotFoundError, CorruptBlockError, ValueError):
        return False


def _find_misfit(plan: StorePlan, block: Block, record: CommitRecord) -> str | None:
    """Why a whole record is not the one of this block of this store; None where it is."""
    if record.block != block.name:
        return f"it is the record of block {record.block}"
    if record.fingerprint != plan.fingerprint_of(block):
        return "it is of a store with another backbone, preprocessing, codec or other images"
    if not _are_same(record.image_ids, plan.image_ids_of(block)):
        return "it lists other images than images.npz has in this block"
    parts = plan.layout.parts(block.bucket)
    if record.shards.keys() != parts.keys():
        return f"it lists {', '.join(record.shards)} instead of {', '.join(parts)}"
    return None


def _are_same(listed: Sequence[int | None], image_ids: Sequence[int]) -> bool:
    if listed == image_ids:
        return True
    return len(listed) == len(image_ids) and all(
        one is None or one == image_id for one, image_id in zip(listed, image_ids, strict=True)
    )


def _lacks_images(plan: StorePlan, block: Block, record: CommitRecord) -> bool:
    """Whether a block was written without images that came back to the store since."""
    pairs = zip(block.rows, record.image_ids, strict=True)
    return None in record.image_ids and any(
        image_id is None and row not in plan.gone for row, image_id in pairs
    )


def _shard_fault(source: ByteSource, key: str, shard: ShardRecord, *, deep: bool) -> str | None:
    try:
        file = source.open(key)
        if file.nbytes != shard.nbytes:
            return f"the shard has {file.nbytes} bytes, {shard.nbytes} were committed"
        if deep and digest_of(file) != shard.digest:
            return "the content is not what was committed"
    except FileNotFoundError:
        return "the shard file is missing"
    except EOFError as error:
        return f"the shard was cut off while it was read ({error})"
    except OSError as error:
        if proves_damage(error):
            return f"the shard file cannot be opened ({error.strerror})"
        raise unreadable(source.describe(key), error) from error
    return None


def digest_of(file: OpenFile) -> str:
    """128-bit xxh3 of a file's content."""
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(_READ_NBYTES))
    for offset in range(0, file.nbytes, _READ_NBYTES):
        piece = buffer[: min(_READ_NBYTES, file.nbytes - offset)]
        file.read_into(offset, [piece])
        digest.update(piece)
    return digest.hexdigest()


def total_quality(of_parts: Iterable[Mapping[str, Quality]]) -> dict[str, Quality]:
    """Sums over blocks or images, by level."""
    total: dict[str, Quality] = {}
    for by_level in of_parts:
        for level, quality in by_level.items():
            total[level] = total[level] + quality if level in total else quality
    return total

"""Commit records: the truth about which blocks exist, and how their bytes must look."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import xxhash

from cachedet.errors import CorruptBlockError
from cachedet.store.blocks import Block
from cachedet.store.layout import Layout, commit_key, shard_key
from cachedet.store.manifest import digest_json
from cachedet.store.source import ByteSource, OpenFile

_READ_NBYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One whole shard file: its length and the 128-bit xxh3 of its content."""

    nbytes: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What a codec did to the values of one level: sums over all cells of the pictures."""

    values: int
    signal: float  # sum of squares of the true values
    noise: float  # sum of squares of the errors
    saturated: int  # codes cut off at the end of their range

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


NO_QUALITY = Quality(values=0, signal=0.0, noise=0.0, saturated=0)


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """Written after every shard of a block is on the disk; without it the block does not exist."""

    block: str
    image_ids: tuple[int, ...]
    fingerprint: str
    shards: dict[str, ShardRecord]  # by array, such as "C3/codes"
    quality: dict[str, Quality]  # by level

    def to_bytes(self) -> bytes:
        body: dict[str, Any] = {
            "block": self.block,
            "image_ids": list(self.image_ids),
            "fingerprint": self.fingerprint,
            "shards": {array: vars(shard) for array, shard in self.shards.items()},
            "quality": {level: vars(quality) for level, quality in self.quality.items()},
        }
        return json.dumps({**body, "checksum": digest_json(body)}, indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes, *, where: str) -> CommitRecord:
        """Raises CorruptBlockError where the record is damaged."""
        try:
            body = json.loads(content)
            checksum = body.pop("checksum")
            if checksum != digest_json(body):
                raise ValueError("its checksum does not match")
            return cls(
                block=body["block"],
                image_ids=tuple(body["image_ids"]),
                fingerprint=body["fingerprint"],
                shards={array: ShardRecord(**shard) for array, shard in body["shards"].items()},
                quality={level: Quality(**values) for level, values in body["quality"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptBlockError(
                f"{where}: the commit record is damaged ({error}). The same `cachedet extract` "
                "again writes this block anew"
            ) from error


def read_record(source: ByteSource, block: Block) -> CommitRecord:
    """Raises FileNotFoundError, or CorruptBlockError where the record is damaged."""
    key = commit_key(block)
    return CommitRecord.from_bytes(source.read(key), where=source.describe(key))


def find_fault(
    source: ByteSource, block: Block, record: CommitRecord, layout: Layout, *, deep: bool
) -> tuple[str, str] | None:
    """The first shard that is not what was committed, as (where, reason); None where all are.

    Lengths are always compared; `deep` reads every byte and compares digests too.
    """
    parts = layout.parts(block.bucket)
    if record.shards.keys() != parts.keys():
        where = source.describe(commit_key(block))
        return where, f"it lists {', '.join(record.shards)} instead of {', '.join(parts)}"
    for array, part in parts.items():
        key, shard = shard_key(block, array, part), record.shards[array]
        try:
            file = source.open(key)
        except FileNotFoundError:
            return source.describe(key), "the shard file is missing"
        except OSError as error:
            return source.describe(key), f"the shard file cannot be read ({error.strerror})"
        if file.nbytes != shard.nbytes:
            reason = f"the shard has {file.nbytes} bytes, {shard.nbytes} were committed"
            return source.describe(key), reason
        if deep and digest_of(file) != shard.digest:
            return source.describe(key), "the content is not what was committed"
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


def total_quality(records: Iterable[CommitRecord]) -> dict[str, Quality]:
    """Sums over blocks, by level."""
    total: dict[str, Quality] = {}
    for record in records:
        for level, quality in record.quality.items():
            total[level] = total.get(level, NO_QUALITY) + quality
    return total

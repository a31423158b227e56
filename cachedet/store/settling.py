"""Committing a block in an object storage, where nothing can be renamed or locked.

Its shards have the keys that zarr gives them, so that two writers of one block meet. Who comes
second takes the shards that are there, as long as they are whole; a record says what lies there.
A whole shard is never replaced, so no committed byte ever is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import xxhash

from cachedet.errors import CorruptBlockError, StoreError
from cachedet.store.codecs.codec import Part
from cachedet.store.files.bucket import Bucket, Found
from cachedet.store.files.source import ByteSource, OpenFile
from cachedet.store.format.commits import (
    CommitRecord,
    ShardRecord,
    check_block,
    is_recorded,
)
from cachedet.store.format.layout import Block, commit_key, withdrawn_key
from cachedet.store.format.manifest import digest_json
from cachedet.store.format.plan import StorePlan
from cachedet.store.format.shards import checksums_of

SHARDS_AT_ONCE = 8  # of a block that is sent
_CHECKS = 16  # records that are read


def settle_shards(
    bucket: Bucket, plan: StorePlan, block: Block, contents: Mapping[str, bytes]
) -> dict[str, ShardRecord]:
    """Write the shards of a block (by array), or take those that are there; what lies there then.

    Raises StoreError where one is there that is whole and of nobody knows what.
    """
    parts = plan.layout.parts(block.bucket)

    def settle(array: str) -> ShardRecord:
        return _settle_shard(bucket, plan, block, array, parts[array], contents[array])

    with ThreadPoolExecutor(SHARDS_AT_ONCE) as threads:
        return dict(zip(contents, threads.map(settle, contents), strict=True))


def _settle_shard(
    bucket: Bucket, plan: StorePlan, block: Block, array: str, part: Part, content: bytes
) -> ShardRecord:
    key = plan.layout.shard_keys(block)[array]
    where = bucket.source.describe(key)
    of = origin_of(plan, block, array)
    checksums = partial(
        checksums_of,
        used=len(block.rows),
        slots=plan.manifest.block_size,
        part=part,
        where=where,
    )

    def stays(found: Found) -> bool:
        try:
            checksums(found.content)
        except CorruptBlockError:
            return False
        if found.of == of or _was_committed(bucket, block, array, found.content):
            return True
        if is_recorded(plan, block):  # by another writer meanwhile
            return True
        raise StoreError(
            f"{where} is there without a commit record, and other than this process computes it: "
            "it came with a copy, is of another store, or was written while images that are back "
            f"now were out of it. Nothing was replaced: `cachedet prune {bucket}` removes it while "
            "nobody writes there, then run the same command again"
        )

    settled = bucket.settle(key, content, of=of, stays=stays)
    return ShardRecord(
        nbytes=len(settled),
        digest=xxhash.xxh3_128(settled).hexdigest(),
        chunk_checksums=checksums(settled),
    )


def origin_of(plan: StorePlan, block: Block, array: str) -> str:
    """What a shard says it belongs to, in the user metadata of its object."""
    blank = [slot for slot, row in enumerate(block.rows) if row in plan.gone]
    without = f" without {digest_json(blank)}" if blank else ""
    return f"{plan.fingerprint_of(block)} {block.name} {array}{without}"


def _was_committed(bucket: Bucket, block: Block, array: str, content: bytes) -> bool:
    """Whether `verify` withdrew the block for something else than this shard."""
    key = withdrawn_key(block)
    found = bucket.find(key)
    if found is None:
        return False
    try:
        record = CommitRecord.from_bytes(found.content, where=key)
    except CorruptBlockError:
        return False
    shard = record.shards.get(array)
    return shard is not None and shard.digest == xxhash.xxh3_128(content).hexdigest()


def publish_record(bucket: Bucket, block: Block, record: CommitRecord) -> bool:
    """From here on the block exists. False where another writer has committed it.

    One that says something else of the shards is damaged, or its shards were lost.
    """
    key, content = commit_key(block), record.to_bytes()
    if bucket.create(key, content):
        return True
    found = bucket.find(key)
    if found is None:
        return False
    with contextlib.suppress(CorruptBlockError):
        there = CommitRecord.from_bytes(found.content, where=key)
        ours, its = ((one.block, one.fingerprint, one.shards) for one in (record, there))
        if ours == its:
            return False
    return bucket.replace(key, content, found)


def whole_blocks(bucket: Bucket, plan: StorePlan, blocks: Iterable[Block]) -> set[str]:
    """Names of the committed ones whose shards have the committed lengths, by one listing."""
    sizes = bucket.sizes()
    listed = replace(plan, source=_Listed(bucket.source, sizes))

    def is_whole(block: Block) -> bool:
        try:
            return check_block(listed, block, deep=False)[1] is None
        except FileNotFoundError:
            return False

    recorded = [block for block in blocks if commit_key(block) in sizes]
    with ThreadPoolExecutor(_CHECKS) as threads:
        checked = zip(recorded, threads.map(is_whole, recorded), strict=True)
        return {block.name for block, is_good in checked if is_good}


class _Listed:
    """A source that knows the sizes of all its files, and asks nobody for them."""

    def __init__(self, source: ByteSource, sizes: Mapping[str, int]) -> None:
        self.is_remote = source.is_remote
        self.describe = source.describe
        self.read = source.read
        self.names = source.names
        self.confirm = source.confirm
        self._sizes = sizes

    def open(self, key: str) -> OpenFile:
        if key not in self._sizes:
            raise FileNotFoundError(key)
        return _Sized(self._sizes[key])


class _Sized:
    """A file of which only the size is known."""

    identity: tuple[int, ...] = ()

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def read_into(self, offset: int, buffers: object) -> None:
        raise NotImplementedError("only its size is known")

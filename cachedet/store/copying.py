"""A store copied to another place, block by block; what arrives is what was committed.

The copy is a store from its first block on, which lacks what has not arrived: the same call goes
on, and `extract` may finish it, too.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from cachedet.errors import CorruptBlockError, StoreError, StoreMismatchError
from cachedet.progress import StageProgress
from cachedet.store.creation import make_store, require_place
from cachedet.store.files.bucket import Bucket
from cachedet.store.files.depot import Depot, Folder, Place, open_depot
from cachedet.store.files.names import CODEC_STATE, MANIFEST, STAGES, images_key, truth_key
from cachedet.store.files.source import ByteSource, open_source
from cachedet.store.format.commits import CommitRecord, check_block, read_record
from cachedet.store.format.layout import Block, metadata_keys
from cachedet.store.format.plan import StorePlan
from cachedet.store.writer import StoreWriter

_AT_ONCE = 4  # blocks on their way; each is in memory whole


@dataclass(frozen=True, kw_only=True)
class CopyReport:
    """What one call of `copy_store` did."""

    source: str
    target: str
    blocks: int  # that the finished store has
    copied: int
    held: int  # that were there before
    missing: tuple[str, ...]  # blocks that the source lacks
    bad: tuple[str, ...]  # why blocks of the source could not be copied
    nbytes: int  # of shards, written now

    @property
    def is_whole(self) -> bool:
        return self.copied + self.held == self.blocks

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.is_whole, **asdict(self)}


def copy_store(source: Place, target: Place) -> CopyReport:
    """Copy a store from a folder or URL into a folder or an object storage, or go on with it.

    Every shard is compared with its commit record on the way.

    Raises:
        StoreMismatchError: the target holds another store, or this one as it was before.
        StoreError: the source cannot be opened, the target cannot be written.
    """
    held = source.source if isinstance(source, Folder | Bucket) else open_source(source)
    plan = StorePlan.load(held)
    plan.require_metadata()
    depot = open_depot(target)
    _require_apart(plan.source, depot)
    require_place(depot)
    make_store(depot, lambda: _files_of(plan))
    copy = StorePlan.load(depot.source)
    if copy.manifest != plan.manifest:
        differing = "; ".join(copy.manifest.differing_fields(plan.manifest)) or "its labels differ"
        raise StoreMismatchError(
            f"{depot} holds another store than {plan.source.describe('')}, or the same as it was "
            f"before views, images or labels changed: {differing}. Copy into a new place"
        )
    copy.require_metadata()
    writer = StoreWriter(depot, copy)
    absent = writer.missing_blocks()
    missing: list[str] = []
    bad: list[str] = []
    with (
        StageProgress("copy", total=len(absent), unit="blocks") as progress,
        ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="copy") as threads,
    ):
        moves = [threads.submit(_copy_block, plan, writer, block) for block in absent]
        for block, move in zip(absent, moves, strict=True):
            nbytes = 0
            try:
                nbytes = move.result()
            except FileNotFoundError:
                missing.append(block.name)
            except CorruptBlockError as error:
                bad.append(str(error))
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
            progress.advance(1, nbytes=nbytes)
    return CopyReport(
        source=plan.source.describe(""),
        target=str(depot),
        blocks=len(copy.needed),
        copied=len(absent) - len(missing) - len(bad),
        held=len(copy.needed) - len(absent),
        missing=tuple(sorted(missing)),
        bad=tuple(sorted(bad)),
        nbytes=writer.nbytes_written,
    )


def _require_apart(source: ByteSource, depot: Depot) -> None:
    """Raises StoreError where a store would be copied onto itself, or into itself."""
    here, there = source.describe(MANIFEST), depot.source.describe(MANIFEST)
    if not isinstance(depot, Bucket) and not source.is_remote:
        here, there = (str(Path(place).resolve()) for place in (here, there))
    if here == there:
        raise StoreError(f"{depot} would be copied onto itself; name another place")
    if there.startswith(here.removesuffix(MANIFEST)):
        where = source.describe("").rstrip("/")
        raise StoreError(f"{depot} lies inside of {where}, which is copied; name a place outside")


def _files_of(plan: StorePlan) -> dict[str, bytes]:
    """Every file that is no block's, the manifest last. Raises StoreError."""
    manifest = plan.manifest
    keys = metadata_keys(plan.blocks, plan.layout)
    keys = [*keys, *(images_key(*pair) for pair in enumerate(manifest.image_digests))]
    keys.append(truth_key(manifest.truth_digest))
    if plan.codec.needs_fit:
        keys.append(CODEC_STATE)
    if manifest.stages_digest:
        keys.append(STAGES)
    return {key: _read(plan.source, key) for key in (*keys, MANIFEST)}


def _read(source: ByteSource, key: str) -> bytes:
    try:
        return source.read(key)
    except OSError as error:
        raise StoreError(
            f"{source.describe(key)} cannot be read ({error.strerror or error}); was the store "
            "changed while it was copied? Run the same command again"
        ) from error


def _copy_block(plan: StorePlan, writer: StoreWriter, block: Block) -> int:
    """Bytes of its shards. Raises CorruptBlockError; FileNotFoundError: the source lacks it."""
    _, fault = check_block(plan, block, deep=False)
    if fault is not None:
        raise CorruptBlockError(f"{fault.where}: {fault.reason}")
    record = read_record(plan.source, block)
    keys = plan.layout.shard_keys(block)
    contents = {array: _read_shard(plan.source, key, record, array) for array, key in keys.items()}
    writer.adopt(block, contents, record)
    return sum(map(len, contents.values()))


def _read_shard(source: ByteSource, key: str, record: CommitRecord, array: str) -> bytes:
    shard = record.shards[array]
    try:
        file = source.open(key)
        content = bytearray(shard.nbytes)
        file.read_into(0, [memoryview(content)])
    except (FileNotFoundError, EOFError) as error:
        raise CorruptBlockError(f"{source.describe(key)}: the shard is cut off or gone") from error
    if xxhash.xxh3_128(content).hexdigest() != shard.digest:
        raise CorruptBlockError(f"{source.describe(key)}: the content is not what was committed")
    return bytes(content)

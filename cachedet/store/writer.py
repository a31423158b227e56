"""Writing a store: whole shards, fsync, then the commit record. Any number of writers at once.

Letters: n images, C channels, h w feature cells, B images per shard.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedet.errors import StoreError
from cachedet.store.codecs.codec import Codec, Encoded, Shape
from cachedet.store.creation import open_or_create
from cachedet.store.files.bucket import Bucket
from cachedet.store.files.depot import Folder, Place, open_depot
from cachedet.store.files.durable import (
    cannot_write,
    sync_directory,
    temporary_path,
    write_durably,
    write_synced,
)
from cachedet.store.files.leases import commit_lock
from cachedet.store.files.names import COMMITS
from cachedet.store.format.commits import (
    CommitRecord,
    Quality,
    ShardRecord,
    check_block,
    is_recorded,
    total_quality,
)
from cachedet.store.format.layout import Block, commit_key, shard_key, withdrawn_key
from cachedet.store.format.manifest import NO_ROWS, Manifest, load_manifest
from cachedet.store.format.plan import StorePlan
from cachedet.store.format.shards import Packed, chunk_checksum, pack_chunk, pack_index
from cachedet.store.settling import publish_record, settle_shards, whole_blocks
from cachedet.store.store_inputs import Fit, StoreInputs
from cachedet.structures import Annotations, Features


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedImages:
    """Some images of a block, encoded and packed, waiting to be written."""

    chunks: dict[str, list[Packed]]  # by array, one an image
    quality: dict[str, Quality]  # by level

    @property
    def nbytes(self) -> int:
        return sum(_nbytes(packed) for of_array in self.chunks.values() for packed in of_array)


class StoreWriter:
    """Writes blocks of features into a new store or one that was interrupted.

    Several threads may encode, and commit, at once.
    """

    def __init__(self, place: Place, plan: StorePlan) -> None:
        self.depot = open_depot(place)
        self.manifest = plan.manifest
        self.blocks = plan.needed  # all that the finished store has
        self.gone = plan.gone  # rows of images that were taken out: their slots stay blank
        self.nbytes_written = 0  # of shards, by this writer
        self.blocks_lost = 0  # that another writer committed while this one wrote them
        self._plan = plan
        self._committed: set[str] = set()  # seen in an object storage, where they stay
        self._counting = threading.Lock()

    @property
    def root(self) -> Path:
        """The folder of the store. Raises StoreError where it lies in an object storage."""
        if self.depot.folder is None:
            raise StoreError(f"{self.depot} is no folder of this machine")
        return self.depot.folder

    @classmethod
    def open(
        cls,
        place: Place,
        *,
        manifest: Manifest,
        annotations: Annotations,
        contents: NDArray[np.uint64],  # (N,) hash of each image file, to notice changed ones
        fit: Fit,
        stages: bytes | None = None,  # file of the stages' weights, whose digest the manifest has
        withdrawn: NDArray[np.int64] = NO_ROWS,  # images that were taken out, without boxes
    ) -> StoreWriter:
        """Create the store, or continue one made from the same inputs, with more views or not.

        Raises:
            StoreMismatchError: it holds features of other inputs; names each differing field.
            StoreError: the folder is something else, cannot be written, or the disk is too small
                for what is missing even if it compresses as well as anything did.
        """
        inputs = StoreInputs(
            manifest=manifest,
            annotations=annotations,
            contents=contents,
            fit=fit,
            stages=stages,
            withdrawn=withdrawn,
        )
        depot = open_depot(place)
        try:
            writer = cls(depot, open_or_create(depot, inputs))
            if isinstance(depot, Folder):
                depot.require_space(writer._plan.layout.least_nbytes(writer.missing_blocks()))
        except OSError as error:
            raise cannot_write(depot.folder or Path(), error) from error
        return writer

    def missing_blocks(self) -> list[Block]:
        """Blocks that are not committed, or whose files no longer have the committed length."""
        if isinstance(self.depot, Bucket):
            unknown = [block for block in self.blocks if block.name not in self._committed]
            self._committed |= whole_blocks(self.depot, self._plan, unknown)
            return [block for block in unknown if block.name not in self._committed]
        return [block for block in self.blocks if not self.is_committed(block)]

    def recorded_blocks(self) -> set[str]:
        """Names of the blocks that have a record in an object storage, by a listing alone.

        Enough to leave them to others for now; `missing_blocks` reads the records.
        """
        assert isinstance(self.depot, Bucket)
        records = self.depot.sizes(COMMITS)
        return {block.name for block in self.blocks if commit_key(block) in records}

    def blocks_left(self) -> int:
        """How many blocks nobody has written by now; in an object storage by a listing alone.

        Records that `missing_blocks` has read at the start stay, and newer ones were made whole.
        """
        if isinstance(self.depot, Bucket):
            return len(self.blocks) - len(self.recorded_blocks())
        return len(self.missing_blocks())

    def is_committed(self, block: Block) -> bool:
        """Whether a whole block lies in the store now, whoever wrote it.

        In an object storage its record says so: a shard is there before it, and stays.
        """
        if self.depot.folder is None:
            return block.name in self._committed or is_recorded(self._plan, block)
        try:
            _, fault = check_block(self._plan, block, deep=False)
        except FileNotFoundError:
            return False
        return fault is None

    def planned_nbytes(self, blocks: Sequence[Block]) -> int:
        """Bytes that writing `blocks` takes: exact without zstd, else the most they can be."""
        layout = self._plan.layout
        return sum(len(block.rows) * layout.image_nbytes(block.bucket) for block in blocks)

    def write(self, block: Block, features: Features) -> bool:
        """Encode and commit one whole block, see `encode` and `commit`; whether it is ours."""
        return self.commit(block, [self.encode(block, features)]) is not None

    def encode(self, block: Block, features: Features, *, start: int = 0) -> PackedImages:
        """Encode maps (n, C, h, w) by level, on any device, of images `start` and following.

        Raises CodecError that names the image where a value cannot be represented, StoreError on
        wrong shapes.
        """
        count = len(next(iter(features.values())))
        rows = block.rows[start : start + count]
        shapes = self.manifest.spec.map_shapes(block.bucket)
        expected = {level: (len(rows), *shape) for level, shape in shapes.items()}
        given = {level: tuple(maps.shape) for level, maps in features.items()}
        if given != expected:
            raise StoreError(f"block {block.name}: expected maps {expected}, got {given}")
        images = [self._plan.annotations.file_names[row] for row in rows]
        chunks: dict[str, list[Packed]] = {}
        quality = {}
        for level, parts in self._plan.layout.levels(block.bucket).items():
            maps = features[level]
            encoded = self._plan.codec.encode(maps, level=level, images=images)
            quality[level] = _measure(self._plan.codec, maps, encoded, level, shapes[level])
            arrays = encoded.arrays()
            for part in parts:
                values = arrays[part.name]
                chunks[f"{level}/{part.name}"] = [pack_chunk(one, part) for one in values]
        return PackedImages(chunks=chunks, quality=quality)

    def commit(self, block: Block, images: Sequence[PackedImages]) -> CommitRecord | None:
        """Write, fsync and commit all images of one block, in order.

        Returns None where another writer has committed the block meanwhile; its bytes then stay.
        Raises StoreError where the disk refuses, or the store no longer wants the block; nothing
        half-written is visible then.
        """
        if isinstance(self.depot, Bucket):
            return self._commit_object(self.depot, block, images)
        chunks = {
            array: [chunk for some in images for chunk in some.chunks[array]]
            for array in self._plan.layout.shard_keys(block)
        }

        def describe(written: Mapping[str, tuple[int, str]]) -> CommitRecord:
            shards = {
                array: ShardRecord(
                    nbytes=nbytes,
                    digest=digest,
                    chunk_checksums=b"".join(map(chunk_checksum, chunks[array])),
                )
                for array, (nbytes, digest) in written.items()
            }
            return self._make_record(block, shards, images)

        pieces = {array: self._shard(of_array) for array, of_array in chunks.items()}
        return self._commit_files(
            block, pieces, describe, needed=sum(some.nbytes for some in images)
        )

    def adopt(
        self, block: Block, contents: Mapping[str, bytes], record: CommitRecord
    ) -> CommitRecord | None:
        """Commit a block of the same store elsewhere: its shards, by array, and its record.

        Returns and raises as `commit` does.
        """
        if isinstance(self.depot, Bucket):
            shards = settle_shards(self.depot, self._plan, block, contents)
            return self._publish_object(self.depot, block, replace(record, shards=shards))
        pieces = {array: [content] for array, content in contents.items()}
        return self._commit_files(
            block, pieces, lambda _: record, needed=sum(map(len, contents.values()))
        )

    def _commit_files(
        self,
        block: Block,
        pieces: Mapping[str, Iterable[bytes | memoryview]],
        describe: Callable[[Mapping[str, tuple[int, str]]], CommitRecord],
        *,
        needed: int,
    ) -> CommitRecord | None:
        """`describe` makes the record of lengths and digests, by array."""
        temporary: dict[str, Path] = {}
        written: dict[str, tuple[int, str]] = {}
        try:
            for array, key in self._plan.layout.shard_keys(block).items():
                path = self.root / key
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary[array] = temporary_path(path)
                written[array] = write_synced(temporary[array], pieces[array])
            record = describe(written)
            with commit_lock(self.root):
                self._require_planned(block)
                if self.is_committed(block):
                    return None
                self._publish(block, record, temporary)
        except OSError as error:
            raise cannot_write(self.root, error, needed=needed) from error
        finally:
            for path in temporary.values():
                path.unlink(missing_ok=True)
        with self._counting:
            self.nbytes_written += record.nbytes
        return record

    def _commit_object(
        self, bucket: Bucket, block: Block, images: Sequence[PackedImages]
    ) -> CommitRecord | None:
        contents = {
            array: b"".join(self._shard([chunk for some in images for chunk in some.chunks[array]]))
            for array in self._plan.layout.shard_keys(block)
        }
        shards = settle_shards(bucket, self._plan, block, contents)
        return self._publish_object(bucket, block, self._make_record(block, shards, images))

    def _publish_object(
        self, bucket: Bucket, block: Block, record: CommitRecord
    ) -> CommitRecord | None:
        self._require_planned(block)
        is_ours = publish_record(bucket, block, record)
        with self._counting:
            self._committed.add(block.name)
            if is_ours:
                self.nbytes_written += record.nbytes
            else:
                self.blocks_lost += 1
        return record if is_ours else None

    def _make_record(
        self, block: Block, shards: dict[str, ShardRecord], images: Sequence[PackedImages]
    ) -> CommitRecord:
        return CommitRecord(
            block=block.name,
            image_ids=self._written_ids(block),
            fingerprint=self._plan.fingerprint_of(block),
            shards=shards,
            quality=total_quality(some.quality for some in images),
        )

    def _written_ids(self, block: Block) -> tuple[int | None, ...]:
        """Of its images, None of those whose slots are blank."""
        pairs = zip(block.rows, self._plan.image_ids_of(block), strict=True)
        return tuple(None if row in self.gone else image_id for row, image_id in pairs)

    def _shard(self, chunks: Sequence[Packed]) -> Iterator[bytes | memoryview]:
        yield from itertools.chain.from_iterable(chunks)
        lengths = [_nbytes(packed) for packed in chunks]
        yield pack_index(lengths, slots=self._plan.manifest.block_size)

    def _require_planned(self, block: Block) -> None:
        """Raises StoreError where the store was pruned, replaced or got images back since then."""
        ours, now = self._plan.manifest, load_manifest(self._plan.source)
        is_there = block.view in now.views and block.generation < len(now.starts)
        fingerprint = self._plan.fingerprint_of(block)
        if is_there and now.block_fingerprint(block.generation) == fingerprint:
            self._require_blank(block, now)
            return
        changes = "; ".join(now.differing_fields(ours)) or "its codec learnt something else"
        raise StoreError(
            f"{self.depot} was changed while this process wrote into it. {changes}. Give the "
            "inputs that the store has now, or extract into a new --store"
        )

    def _require_blank(self, block: Block, now: Manifest) -> None:
        """Raises StoreError where an image came back whose slot this writer left blank."""
        blank = self.gone.intersection(block.rows)
        if not blank or now.withdrawn_digest == self.manifest.withdrawn_digest:
            return
        if not blank <= StorePlan.load(self._plan.source).gone:
            raise StoreError(
                f"{self.root}: images came back to the store while this process wrote into it, "
                f"which has not read them (block {block.name}). Run the same command again"
            )

    def _publish(self, block: Block, record: CommitRecord, temporary: dict[str, Path]) -> None:
        """Give the shards their names, then write the record: only then the block exists."""
        record_path = self.root / commit_key(block)
        if record_path.exists():  # it must be gone for good before a shard changes
            record_path.unlink(missing_ok=True)
            sync_directory(record_path.parent)
        for array, part in self._plan.layout.parts(block.bucket).items():
            path = self.root / shard_key(block, array, part)
            temporary[array].replace(path)
            for folder in list(path.parents)[: len(part.shape) + 2]:  # up to the array's own
                sync_directory(folder)
        write_durably(record_path, record.to_bytes())
        with contextlib.suppress(OSError):  # it may be what somebody made a folder
            (self.root / withdrawn_key(block)).unlink(missing_ok=True)


def _measure(codec: Codec, maps: Tensor, encoded: Encoded, level: str, shape: Shape) -> Quality:
    """What encoding did to the maps, by decoding them again, where they lie."""
    decoded = codec.decode(encoded.parts, level=level, shape=shape)
    exact = maps.detach().to(torch.float32)
    return Quality(
        values=exact.numel(),
        signal=_energy(exact),
        noise=_energy(decoded.sub_(exact)),
        saturated=encoded.saturated,
    )


def _energy(maps: Tensor) -> float:
    """Sum of squares, to 9 digits: the order of summation shall not change a record."""
    lengths = torch.linalg.vector_norm(maps, dim=(2, 3)).double()
    if not bool(lengths.isfinite().all()):  # squares beyond float32; 20 times slower
        lengths = torch.linalg.vector_norm(maps, dim=(2, 3), dtype=torch.float64)
    return float(f"{float(lengths.square().sum()):.9g}")


def _nbytes(packed: Packed) -> int:
    return sum(len(piece) for piece in packed)

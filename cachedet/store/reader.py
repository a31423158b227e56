"""Reading a store: a feature is exactly what was committed, or an exception (law L4)."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from zarr.abc.store import Store

from cachedet.data.views import short_names
from cachedet.errors import CorruptBlockError, MissingFeatureError, StoreError
from cachedet.store.codecs.codec import Part
from cachedet.store.files.disk_cache import DiskCache
from cachedet.store.files.names import COMMITS, MANIFEST
from cachedet.store.files.source import open_source
from cachedet.store.format.annotations import rows_but
from cachedet.store.format.chunks import Chunk, ChunkReader, EncodedFeatures, Shard
from cachedet.store.format.commits import Quality, read_record, read_records, total_quality
from cachedet.store.format.fetching import Fetched, RemoteChunks
from cachedet.store.format.layout import Block, shard_key
from cachedet.store.format.manifest import truth_digest, withdrawn_digest
from cachedet.store.format.plan import StorePlan
from cachedet.store.format.stages import load_stages
from cachedet.structures import Annotations, Features, SizeHW

Key = tuple[int, str]
"""(row, view) of one image."""

PackedParts = tuple[bytes | NDArray[Any], ...]
"""The parts of one image, level by level: zstd frames, or arrays that are not compressed."""


def open_store(location: Path | str | Store) -> FeatureStore:
    """Open a store for reading: a folder, a URL, or a zarr storage object.

    Raises:
        StoreError: no store there, another format, or damaged metadata.
        CorruptBlockError: a damaged commit record.
        RemoteStoreError: a server did not give its bytes, which proves no damage.

    Examples:
        >>> store = cachedet.open_store("train.zarr")
        >>> store.spec, store.class_names, store.views, len(store)
        >>> store.read(0, "base")["C3"]  # (C, h, w) float32
    """
    return FeatureStore.open(location)


class FeatureStore:
    """The committed part of a store at the moment it was opened.

    Any number of threads may read at once. After a fork the child reads a local folder as its
    parent does; another storage refuses with a StoreError there (its connections are the
    parent's). A pickled store is the same moment of the same store, opened in another process.

    Attributes:
        location: where it lies, for people: without credentials.
        spec: its levels, fine to coarse.
        views: names of the views it holds.
        class_names: by label.
        num_classes: how many there are.
        annotations: its images and boxes; images that were taken out are none of them.
        contents: digests of its image files, by row.
        manifest: everything it says of itself.
        blocks: every block the finished store has, committed or not, with its rows of
            `annotations`.
        codec: decodes what `read_encoded` gives.
        disk_cache: where copies of a remote store lie on this machine, and how large they may grow;
            empty where none are made.
    """

    def __init__(self, plan: StorePlan) -> None:
        self.location = plan.source.describe("").rstrip("/")
        self.spec = plan.manifest.spec
        self.views = plan.manifest.views
        self.class_names = plan.manifest.categories.names
        self.num_classes = len(self.class_names)
        self.annotations, self.contents, self.blocks = _without_withdrawn(plan)
        self.manifest = plan.manifest
        self.codec = plan.codec
        self._plan = plan
        self._records = read_records(plan)
        self._block_of, self._slot_of = _index_rows(plan)
        self._shards: dict[tuple[int, str], list[Shard]] = {}  # by (block, level), as they are used
        self._chunks = ChunkReader(plan.source, plan.manifest.block_size)
        self._remote = self._of_server(None) if self.is_remote else None
        self.disk_cache = ""

    @classmethod
    def open(cls, location: Path | str | Store | FeatureStore) -> FeatureStore:
        """Open a store for reading, or take one that is open; raises what `open_store` does."""
        if isinstance(location, FeatureStore):
            return location
        source = open_source(location)

        def read() -> FeatureStore:
            plan = StorePlan.load(source)
            plan.require_metadata()
            return cls(plan)

        return source.confirm(read, MANIFEST)

    def cached_in(self, cache: DiskCache) -> FeatureStore:
        """This store, read through copies on a disk of this machine; a local one is itself."""
        if not self.is_remote:
            return self
        through = copy.copy(self)
        through._remote = self._of_server(cache)
        through.disk_cache = cache.describe_bound()
        return through

    def _of_server(self, cache: DiskCache | None) -> RemoteChunks:
        return RemoteChunks(self._chunks, slots=self.manifest.block_size, cache=cache)

    def __len__(self) -> int:
        return len(self.annotations)

    def keep_rows(self, rows: Sequence[int]) -> FeatureStore:
        """The same store as if only the images of these rows had been left in it.

        Nothing is written: it is the same files at the same moment, read by fewer rows.
        """
        plan = self._plan
        held = rows_but(len(plan.annotations), plan.withdrawn)
        gone = np.setdiff1d(np.arange(len(plan.annotations)), held[list(rows)])
        manifest = replace(
            plan.manifest,
            truth_digest=truth_digest(plan.annotations, gone),
            withdrawn_digest=withdrawn_digest(gone),
        )
        return FeatureStore(replace(plan, withdrawn=gone, manifest=manifest))

    @property
    def is_remote(self) -> bool:
        """Whether each read is a request to a server."""
        return self._plan.source.is_remote

    @property
    def nbytes(self) -> int:
        """Bytes of all committed shards."""
        return sum(s.nbytes for record in self._records.values() for s in record.shards.values())

    @property
    def images_withdrawn(self) -> int:
        """How many images were taken out."""
        return len(self._plan.withdrawn)

    def withdrawn_nbytes(self) -> int:
        """Bytes that images that were taken out still hold: their shares of shards.

        Raises StoreError where a block of them alone cannot be read now.
        """
        nbytes = 0
        for block in self._plan.blocks if self._plan.gone else ():
            record = self._records.get(block.name)
            taken_out = len(self._plan.gone.intersection(block.rows))
            if record is None and taken_out == len(block.rows):
                with suppress(FileNotFoundError, CorruptBlockError):
                    record = read_record(self._plan.source, block)
            if record is not None:
                shards = sum(shard.nbytes for shard in record.shards.values())
                nbytes += shards * taken_out // len(block.rows)
        return nbytes

    @property
    def quality(self) -> dict[str, Quality]:
        """What the codec did to the committed values, by level."""
        return total_quality(record.quality for record in self._records.values())

    def missing_blocks(self) -> list[Block]:
        """Blocks that were not committed when the store was opened."""
        return [block for block in self.blocks if block.name not in self._records]

    def require_complete(self, views: Sequence[str] | None = None) -> None:
        """Raises MissingFeatureError while blocks of these views (None: all) are missing."""
        wanted = self.views if views is None else views
        if lacking := [view for view in wanted if view not in self.views]:
            raise self._lacks(lacking)
        planned = [block for block in self.blocks if block.view in wanted]
        if missing := [block for block in planned if block.name not in self._records]:
            raise MissingFeatureError(
                f"{self.location} is unfinished: {len(missing)} of {len(planned)} blocks are "
                "not committed; run the same `cachedet extract` command again, it continues"
            )

    def require_present(self) -> None:
        """Raises StoreError where the whole store is gone since it was opened."""
        names = self._plan.source.names(COMMITS)
        if names is not None and not names:
            raise StoreError(
                f"{self.location} is gone: its folder was removed or its disk unmounted while it "
                "was read; bring it back, then continue (`train-heads --resume`)"
            )

    def buckets(self, view: str) -> dict[SizeHW, NDArray[np.int64]]:
        """Rows by padded size of their view. Raises MissingFeatureError on an unknown view."""
        self._view_index(view)
        rows: dict[SizeHW, list[int]] = {}
        for block in self.blocks:
            if block.view == view:
                rows.setdefault(block.bucket, []).extend(block.rows)
        # their order decides that of batches: as if images that were taken out had never been there
        by_first = sorted(rows.items(), key=lambda item: item[1][0])
        return {bucket: np.array(members, dtype=np.int64) for bucket, members in by_first}

    def bucket_of(self, row: int, view: str) -> SizeHW:
        """Padded size of one image. Raises MissingFeatureError on an unknown image or view."""
        block, _ = self._locate(row, view)
        return self.blocks[block].bucket

    def encoded_nbytes(self, views: Collection[str], levels: Sequence[str]) -> tuple[int, int]:
        """Bytes of all images of these views as they are stored, and once decompressed.

        Where images of a block were taken out, the former are a share of its shards.
        """
        stored = unpacked = 0
        for index, block in enumerate(self.blocks):
            for level in levels if block.view in views else ():
                for shard in self._shards_of(index, level):
                    stored += shard.record.nbytes * len(block.rows) // len(shard.block.rows)
                    unpacked += shard.part.nbytes * len(block.rows)
        return stored, unpacked

    def read(self, row: int, view: str, levels: Sequence[str] | None = None) -> Features:
        """Maps (C, h, w) float32 of image `row` in `view`, all levels or those named.

        Raises:
            MissingFeatureError: never committed, or an unknown image, view or level.
            CorruptBlockError: the bytes are not what was committed; names the file.
        """
        encoded = self._room_for_one(self.bucket_of(row, view), levels)
        self.read_encoded([(row, view)], out=encoded)
        shapes = self.spec.map_shapes(encoded.bucket)
        features = {}
        for level, arrays in encoded.arrays.items():
            parts = {name: torch.from_numpy(array) for name, array in arrays.items()}
            features[level] = self.codec.decode(parts, level=level, shape=shapes[level])[0]
        return features

    def _room_for_one(self, bucket: SizeHW, levels: Sequence[str] | None) -> EncodedFeatures:
        """Buffers of this thread for one image; what is decoded from them is always new."""
        wanted = self.spec.names if levels is None else tuple(levels)
        room: EncodedFeatures | None = getattr(self._chunks.scratch, "room", None)
        if room is None or room.bucket != bucket or tuple(room.arrays) != wanted:
            room = self._chunks.scratch.room = self.make_buffers(bucket, 1, levels)
        return room

    def make_buffers(
        self, bucket: SizeHW, count: int, levels: Sequence[str] | None = None
    ) -> EncodedFeatures:
        """Empty arrays for `count` images of a bucket, to be read into again and again.

        Raises MissingFeatureError on an unknown level.
        """
        unknown = [level for level in levels or () if level not in self.spec.names]
        if unknown:
            raise MissingFeatureError(
                f"{self.location} holds levels {', '.join(self.spec.names)}, not {unknown[0]!r}"
            )
        held = self._plan.layout.levels(bucket)
        return EncodedFeatures(
            bucket=bucket,
            count=count,
            arrays={
                level: {part.name: part.empty(count) for part in held[level]}
                for level in (self.spec.names if levels is None else levels)
            },
        )

    def fetch(self, keys: Sequence[Key], levels: Sequence[str]) -> Fetched:
        """What a server is asked for to read these images, for `read_encoded`.

        Nothing of a local store. Raises MissingFeatureError, RemoteStoreError.
        """
        if self._remote is None:
            return {}
        located = [self._locate(*key) for key in keys]
        return self._remote.fetch(
            [
                (shard, slot)
                for block, slot in located
                for level in levels
                for shard in self._shards_of(block, level)
            ]
        )

    def read_encoded(
        self, keys: Sequence[Key], *, out: EncodedFeatures, fetched: Fetched | None = None
    ) -> None:
        """Fill buffers of `make_buffers` with the stored parts of images of one bucket.

        Raises what `read` raises, and ValueError where the buffers are for other images; after an
        exception they hold anything.
        """
        if len(keys) != out.count:  # else the rest would be older images
            raise ValueError(f"the buffers are for {out.count} images, {len(keys)} are read")
        chunks = (
            chunk for index, key in enumerate(keys) for chunk in self._chunks_of(key, out, index)
        )
        if self._remote is not None:
            self._remote.read(list(chunks), fetched=fetched)
            return
        for chunk in chunks:
            self._chunks.read(chunk)

    def read_stages(self) -> dict[str, Tensor]:
        """Initial weights of the backbone's stages behind the first level, by name.

        Raises StoreError where the store has none, or other bytes than were written.
        """
        return load_stages(self._plan.source, self.manifest)

    def read_packed(self, keys: Sequence[Key], *, out: EncodedFeatures) -> list[PackedParts]:
        """The stored parts of images; what is compressed stays so, tried in `out` for as many.

        Raises as `read_encoded`.
        """
        images = [list(self._chunks_of(key, out, index)) for index, key in enumerate(keys)]
        chunks = [chunk for image in images for chunk in image]
        if self._remote is not None:
            frames = iter(self._remote.read(chunks, packed=True))
        else:
            frames = (bytes(self._chunks.read(chunk)) for chunk in chunks)
        return [tuple(_as_packed(chunk, next(frames)) for chunk in image) for image in images]

    def _chunks_of(self, key: Key, out: EncodedFeatures, index: int) -> Iterator[Chunk]:
        """The parts of one image, each with its room among those of image `index` in `out`."""
        block, slot = self._locate(*key)
        bucket = self.blocks[block].bucket
        if bucket != out.bucket:
            raise ValueError(f"the buffers are of bucket {out.bucket}, image {key} of {bucket}")
        for level, arrays in out.arrays.items():
            for shard in self._shards_of(block, level):
                yield Chunk(shard, slot, arrays[shard.part.name][index])

    def _shards_of(self, index: int, level: str) -> list[Shard]:
        """The shards of one level of a committed block."""
        known = self._shards.get((index, level))
        if known is not None:
            return known
        block = self._plan.needed[index]
        if block.name not in self._records:
            raise MissingFeatureError(
                f"{self.location}: block {block.name} was never committed; "
                "run the same `cachedet extract` command again"
            )
        parts = self._plan.layout.levels(block.bucket)[level]
        shards = [self._make_shard(block, f"{level}/{part.name}", part) for part in parts]
        self._shards[index, level] = shards
        return shards

    def _make_shard(self, block: Block, array: str, part: Part) -> Shard:
        key = shard_key(block, array, part)
        return Shard(
            key=key,
            where=f"{self._plan.source.describe(key)} (block {block.name})",
            block=block,
            array=array,
            part=part,
            record=self._records[block.name].shards[array],
        )

    def _locate(self, row: int, view: str) -> tuple[int, int]:
        """Index of the block that holds an image, and its slot there."""
        index = self._view_index(view)
        if not 0 <= row < len(self):
            last = len(self) - 1
            raise MissingFeatureError(f"{self.location} has rows 0 to {last}, got row {row}")
        return int(self._block_of[index, row]), int(self._slot_of[index, row])

    def _view_index(self, view: str) -> int:
        if view not in self.views:
            raise self._lacks([view])
        return self.views.index(view)

    def _lacks(self, views: Sequence[str]) -> MissingFeatureError:
        held, asked = short_names(self.views), short_names(views)
        return MissingFeatureError(
            f"{self.location} holds views {', '.join(held)}, not "
            f"{', '.join(map(repr, asked))}; the same `cachedet extract` with these --views adds "
            "them"
        )


def _as_packed(chunk: Chunk, frame: bytes) -> bytes | NDArray[Any]:
    return frame if chunk.shard.part.packing == "zstd" else chunk.out.copy(order="K")


def _without_withdrawn(
    plan: StorePlan,
) -> tuple[Annotations, NDArray[np.uint64], tuple[Block, ...]]:
    """Images, digests of their files, and blocks with their rows, as if no others had been there.

    The blocks are those of `plan.needed`.
    """
    if not plan.gone:
        return plan.annotations, plan.contents, plan.blocks
    rows = rows_but(len(plan.annotations), plan.withdrawn).tolist()
    row_of = {row: number for number, row in enumerate(rows)}
    blocks = tuple(
        replace(block, rows=tuple(row_of[row] for row in block.rows if row in row_of))
        for block in plan.needed
    )
    return plan.annotations.keep_rows(rows), plan.contents[rows], blocks


def _index_rows(plan: StorePlan) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(V, N) index of the block of each image in each view, and its slot in that block."""
    view_index = {view: index for index, view in enumerate(plan.manifest.views)}
    block_of = np.zeros((len(view_index), len(plan.annotations)), dtype=np.int32)
    slot_of = np.zeros_like(block_of)
    for index, block in enumerate(plan.needed):
        rows = list(block.rows)
        block_of[view_index[block.view], rows] = index
        slot_of[view_index[block.view], rows] = np.arange(len(rows))
    kept = rows_but(len(plan.annotations), plan.withdrawn) if plan.gone else slice(None)
    return block_of[:, kept], slot_of[:, kept]

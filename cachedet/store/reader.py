"""Reading a store: a feature is exactly what was committed, or an exception (law L4)."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from zarr.abc.store import Store

from cachedet.data.geometry import Geometry
from cachedet.data.views import make_geometry, make_targets, view_named
from cachedet.errors import MissingFeatureError, StoreError
from cachedet.store.codecs.codec import Part
from cachedet.store.files.names import COMMITS
from cachedet.store.files.source import open_source
from cachedet.store.format.chunks import Chunk, ChunkReader, EncodedFeatures, Shard
from cachedet.store.format.commits import Quality, read_records, total_quality
from cachedet.store.format.layout import Block, shard_key
from cachedet.store.format.manifest import Manifest
from cachedet.store.format.plan import StorePlan
from cachedet.structures import Annotations, Features, SizeHW, Targets

Key = tuple[int, str]
"""(row, view) of one image."""

Packed = tuple[bytes | NDArray[Any], ...]
"""Stored parts of one image, level by level: zstd frames, or arrays that are not compressed."""

_WORTH_A_THREAD = 1_000_000  # bytes of one read below which handing it out costs more


class FeatureStore:
    """The committed part of a store at the moment it was opened.

    Any number of threads may read at once. After a fork the child reads a local folder as its
    parent does; another storage refuses with a StoreError there (its connections are the
    parent's). A pickled store is the same moment of the same store, opened in another process.

    Args:
        plan: what the store holds.
        threads: that share the work of one large read.

    Attributes:
        manifest: what the store holds.
        annotations: its images and boxes.
        blocks: every block the finished store has, committed or not.
    """

    def __init__(self, plan: StorePlan, *, threads: int = 1, most_files: int | None = None) -> None:
        self.manifest: Manifest = plan.manifest
        self.annotations: Annotations = plan.annotations
        self.blocks: tuple[Block, ...] = plan.blocks
        self._views = {name: view_named(name) for name in plan.manifest.views}
        self._plan = plan
        self._records = read_records(plan)
        self._block_of, self._slot_of = _index_rows(plan)
        self._shards: dict[tuple[int, str], list[Shard]] = {}  # by (block, level), as they are used
        self._threads = threads
        self._most_files = most_files
        self._start()

    def _start(self) -> None:
        """What belongs to one process: threads, locks and open files."""
        self._chunks = ChunkReader(
            self._plan.source, slots=self.manifest.block_size, most_files=self._most_files
        )
        self._scratch = threading.local()
        self._pool = (
            ThreadPoolExecutor(self._threads, "feature-chunk") if self._threads > 1 else None
        )
        self._process = os.getpid()  # last: another thread that sees it sees the rest

    def __getstate__(self) -> dict[str, Any]:
        own = ("_chunks", "_scratch", "_pool", "_process")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    @classmethod
    def open(
        cls, location: Path | str | Store, *, threads: int = 1, most_files: int | None = None
    ) -> FeatureStore:
        """Open a store for reading: a folder, a URL for fsspec, or a zarr storage object.

        Raises:
            StoreError: no store there, another format, or damaged metadata.
            CorruptBlockError: a damaged commit record.
        """
        plan = StorePlan.load(open_source(location))
        plan.require_metadata()
        return cls(plan, threads=threads, most_files=most_files)

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def nbytes(self) -> int:
        """Bytes of all committed shards."""
        return sum(s.nbytes for record in self._records.values() for s in record.shards.values())

    @property
    def quality(self) -> dict[str, Quality]:
        """What the codec did to the committed values, by level."""
        return total_quality(self._records.values())

    def missing_blocks(self) -> list[Block]:
        """Blocks that were not committed when the store was opened."""
        return [block for block in self.blocks if block.name not in self._records]

    def require_complete(self, views: Sequence[str] | None = None) -> None:
        """Raises MissingFeatureError while blocks of these views (None: all) are missing."""
        wanted = self.manifest.views if views is None else views
        if lacking := [view for view in wanted if view not in self.manifest.views]:
            raise self._lacks(lacking)
        planned = [block for block in self.blocks if block.view in wanted]
        if missing := [block for block in planned if block.name not in self._records]:
            raise MissingFeatureError(
                f"{self.location} is unfinished: {len(missing)} of {len(planned)} blocks are "
                "not committed; run the same `cachedet extract` command again, it continues"
            )

    def geometry(self, row: int, view: str) -> Geometry:
        """How `view` maps image `row`."""
        self._place(row, view)
        return make_geometry(
            self._views[view],
            image_hw=self.annotations.size_of(row),
            image_id=int(self.annotations.image_ids[row]),
            image_size=self.manifest.image_size,
            pad_multiple=self.manifest.spec.pad_multiple,
        )

    def targets(self, row: int, view: str) -> Targets:
        """Boxes of image `row` in pixels of `view`."""
        return make_targets(self.annotations, row, self.geometry(row, view))

    def buckets(self, view: str) -> dict[SizeHW, NDArray[np.int64]]:
        """Rows by padded size of their view. Raises MissingFeatureError on an unknown view."""
        self._view_number(view)
        rows: dict[SizeHW, list[int]] = {}
        for block in self.blocks:
            if block.view == view:
                rows.setdefault(block.bucket, []).extend(block.rows)
        return {bucket: np.array(members, dtype=np.int64) for bucket, members in rows.items()}

    def read(self, row: int, view: str, levels: Sequence[str] | None = None) -> Features:
        """Maps (C, h, w) float32 of image `row` in `view`, all levels or those named.

        Raises:
            MissingFeatureError: never committed, or an unknown image, view or level.
            CorruptBlockError: the bytes are not what was committed; names the file.
        """
        number, _ = self._place(row, view)
        buffers = self._reusable(self.blocks[number].bucket)
        encoded = self.read_encoded([(row, view)], levels, out=buffers)
        return {level: maps[0] for level, maps in self.decode(encoded).items()}

    def read_batch(
        self, keys: Sequence[Key], levels: Sequence[str], *, device: torch.device | None = None
    ) -> Features:
        """Maps (n, C, h, w) float32 of images of one bucket, decoded on `device`."""
        return self.decode(self.read_encoded(keys, levels), device=device)

    def read_encoded(
        self,
        keys: Sequence[Key],
        levels: Sequence[str] | None = None,
        *,
        out: EncodedFeatures | None = None,
    ) -> EncodedFeatures:
        """The stored arrays of images of one bucket.

        Args:
            keys: (row, view) of each image.
            levels: to read; all by default.
            out: buffers of `make_buffers` to read into; new ones by default. After an exception
                they hold anything.

        Raises what `read` raises, and ValueError where the images are of several buckets or the
        buffers are made for other images or levels.
        """
        places = [self._place(row, view) for row, view in keys]
        buckets = {self.blocks[number].bucket for number, _ in places}
        if len(buckets) != 1:
            raise ValueError(f"images of one read must share one bucket, got {sorted(buckets)}")
        bucket = buckets.pop()
        if out is None:
            out = self.make_buffers(bucket, len(keys), levels)
        wanted = self._known_levels(levels)
        out.require_fits(bucket, len(keys), wanted)
        self._read_chunks(
            [
                Chunk(shard, slot, out.arrays[level][shard.part.name][place])
                for place, (number, slot) in enumerate(places)
                for level in wanted
                for shard in self._shards_of(number, level)
            ]
        )
        return EncodedFeatures(bucket=out.bucket, arrays={k: out.arrays[k] for k in wanted})

    def read_packed(self, row: int, view: str, levels: Sequence[str]) -> Packed:
        """What is stored of one image, checked; what is compressed stays so. Raises as `read`."""
        number, slot = self._place(row, view)
        buffers = self._reusable(self.blocks[number].bucket)
        if self._process != os.getpid():  # as in `_read_chunks`
            self._start()
        packed: list[bytes | NDArray[Any]] = []
        for level in self._known_levels(levels):
            for shard in self._shards_of(number, level):
                out = buffers.arrays[level][shard.part.name][0]
                frame = self._chunks.read(Chunk(shard, slot, out))
                packed.append(bytes(frame) if shard.part.packing == "zstd" else out.copy(order="K"))
        return tuple(packed)

    def encoded_nbytes(self, views: Collection[str], levels: Sequence[str]) -> tuple[int, int]:
        """Bytes of all images of these views as they are stored, and once decompressed."""
        stored = unpacked = 0
        for number, block in enumerate(self.blocks):
            for level in levels if block.view in views else ():
                for shard in self._shards_of(number, level):
                    stored += shard.record.nbytes
                    unpacked += shard.part.nbytes * len(block.rows)
        return stored, unpacked

    def require_present(self) -> None:
        """Raises StoreError where the whole store is gone since it was opened."""
        if not self._plan.source.names(COMMITS):
            raise StoreError(
                f"{self.location} is gone: its folder was removed or its disk unmounted while it "
                "was read; bring it back, then continue (`train-heads --resume`)"
            )

    def make_buffers(
        self, bucket: SizeHW, count: int, levels: Sequence[str] | None = None
    ) -> EncodedFeatures:
        """Empty arrays for `count` images of a bucket, to be read into again and again."""
        known = self._plan.layout.levels(bucket)
        return EncodedFeatures(
            bucket=bucket,
            arrays={
                level: {part.name: part.empty(count) for part in known[level].parts}
                for level in self._known_levels(levels)
            },
        )

    def decode(self, encoded: EncodedFeatures, *, device: torch.device | None = None) -> Features:
        """New float32 maps (n, C, h, w); the stored integers travel to `device` first."""
        parts = {
            level: {name: _to_device(array, device) for name, array in arrays.items()}
            for level, arrays in encoded.arrays.items()
        }
        return self.decode_parts(encoded.bucket, parts)

    def decode_parts(
        self,
        bucket: SizeHW,
        parts: Mapping[str, Mapping[str, torch.Tensor]],
        *,
        out: Features | None = None,
    ) -> Features:
        """The same of stored arrays (n, *part.shape) by level and part, on the device they are.

        New maps, or those of `out` filled with them.
        """
        known = self._plan.layout.levels(bucket)
        return {
            level: self._plan.codec.decode(
                own,
                level=level,
                shape=known[level].shape,
                out=None if out is None else out[level],
            )
            for level, own in parts.items()
        }

    def _read_chunks(self, chunks: Sequence[Chunk]) -> None:
        if self._process != os.getpid():  # forked: the threads are gone, a lock may be held
            self._start()
        if self._pool is None or sum(c.out.nbytes for c in chunks) < _WORTH_A_THREAD:
            for chunk in chunks:
                self._chunks.read(chunk)
            return
        reads = [self._pool.submit(self._chunks.read, chunk) for chunk in chunks]
        try:
            wait(reads)
        finally:  # nobody writes into the buffers any more, also where Ctrl-C came in between
            wait(reads)
        for read in reads:
            read.result()

    def _shards_of(self, number: int, level: str) -> list[Shard]:
        """The shards of one level of a committed block."""
        known = self._shards.get((number, level))
        if known is not None:
            return known
        block = self.blocks[number]
        if block.name not in self._records:
            raise MissingFeatureError(
                f"{self.location}: block {block.name} was never committed; "
                "run the same `cachedet extract` command again"
            )
        parts = self._plan.layout.levels(block.bucket)[level].parts
        shards = [self._make_shard(block, f"{level}/{part.name}", part) for part in parts]
        self._shards[number, level] = shards
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

    def _reusable(self, bucket: SizeHW) -> EncodedFeatures:
        """Buffers of this thread for one image; what is decoded from them is always new."""
        held: EncodedFeatures | None = getattr(self._scratch, "held", None)
        if held is None or held.bucket != bucket:
            held = self._scratch.held = self.make_buffers(bucket, 1)
        return held

    def _place(self, row: int, view: str) -> tuple[int, int]:
        """Number of the block that holds an image, and its slot there."""
        number = self._view_number(view)
        if not 0 <= row < len(self):
            last = len(self) - 1
            raise MissingFeatureError(f"{self.location} has rows 0 to {last}, got row {row}")
        return int(self._block_of[number, row]), int(self._slot_of[number, row])

    def _view_number(self, view: str) -> int:
        if view not in self.manifest.views:
            raise self._lacks([view])
        return self.manifest.views.index(view)

    def _lacks(self, views: Sequence[str]) -> MissingFeatureError:
        return MissingFeatureError(
            f"{self.location} holds views {', '.join(self.manifest.views)}, not "
            f"{', '.join(map(repr, views))}; the same `cachedet extract` with these --views adds "
            "them"
        )

    def _known_levels(self, levels: Sequence[str] | None) -> Sequence[str]:
        held = self.manifest.spec.names
        unknown = [level for level in levels or () if level not in held]
        if unknown:
            raise MissingFeatureError(
                f"{self.location} holds levels {', '.join(held)}, not {unknown[0]!r}"
            )
        return held if levels is None else levels

    @property
    def location(self) -> str:
        """For people."""
        return self._plan.source.describe("").rstrip("/")


def _to_device(array: NDArray[Any], device: torch.device | None) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor if device is None else tensor.to(device)


def _index_rows(plan: StorePlan) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(V, N) number of the block of each image in each view, and its slot in that block."""
    numbers = {view: place for place, view in enumerate(plan.manifest.views)}
    block_of = np.zeros((len(numbers), len(plan.annotations)), dtype=np.int32)
    slot_of = np.zeros_like(block_of)
    for place, block in enumerate(plan.blocks):
        rows = list(block.rows)
        block_of[numbers[block.view], rows] = place
        slot_of[numbers[block.view], rows] = np.arange(len(rows))
    return block_of, slot_of

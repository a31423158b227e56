"""Places of everything in a store, and the zarr metadata that tells other tools.

Array of a level's part: `{view}/b{H}x{W}/{level}/{part}`, axis 0 = slot in the bucket; one chunk an
image, one shard a block. docs/disk-format.md is the full description.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import zarr
from zarr.abc.buffer import Buffer
from zarr.codecs import BytesCodec, Crc32cCodec, TransposeCodec, ZstdCodec
from zarr.storage import MemoryStore

from cachedet.data.views import View, padded_size
from cachedet.store.codecs.codec import ZSTD_LEVEL, Codec, Part
from cachedet.store.files.names import COMMITS, METADATA, WITHDRAWN_SUFFIX
from cachedet.store.format.listing import split_listing, with_listing
from cachedet.structures import Annotations, FeatureSpec, SizeHW


@dataclass(frozen=True, kw_only=True)
class Block:
    """Slots `number * B` to `number * B + len(rows)` of the arrays of one view and bucket."""

    view: str
    bucket: SizeHW  # padded (height, width)
    number: int
    rows: tuple[int, ...]  # rows of the ground truth, in slot order
    generation: int = 0  # of its images: the first, or the how-manieth that were added

    @property
    def group(self) -> str:
        """Path of the zarr group that holds its arrays, relative to the store."""
        return f"{self.view}/{self._bucket}"

    @property
    def name(self) -> str:
        return f"{self.view}-{self._bucket}-{self.number:06d}"

    @property
    def _bucket(self) -> str:
        added = f"g{self.generation}" if self.generation else ""
        return f"b{self.bucket[0]}x{self.bucket[1]}{added}"


def plan_blocks(
    *,
    annotations: Annotations,
    views: Iterable[View],
    image_size: int,
    pad_multiple: int,
    block_size: int,
    starts: Sequence[int] = (0,),
) -> tuple[Block, ...]:
    """Every (image, view) in exactly one block: a pure function of its arguments.

    Images keep the order of their rows within a bucket, so a block never depends on which
    blocks were written before it. `starts` are the first rows of the generations of images: none
    shares a block or an array with another, so that no block changes when images are added.
    """
    blocks = []
    for view in views:
        for generation, (first, end) in enumerate(pairwise((*starts, len(annotations)))):
            members = _rows_by_bucket(annotations, view, image_size, pad_multiple, first, end)
            for bucket, rows in members.items():
                blocks += [
                    Block(
                        view=view.name,
                        bucket=bucket,
                        number=number,
                        rows=tuple(rows[start : start + block_size]),
                        generation=generation,
                    )
                    for number, start in enumerate(range(0, len(rows), block_size))
                ]
    return tuple(blocks)


def _rows_by_bucket(
    annotations: Annotations,
    view: View,
    image_size: int,
    pad_multiple: int,
    first: int,
    end: int,
) -> dict[SizeHW, list[int]]:
    bucket_of: dict[SizeHW, SizeHW] = {}
    rows: dict[SizeHW, list[int]] = {}
    sizes = annotations.sizes_hw[first:end].tolist()
    for row, (height, width) in enumerate(sizes, start=first):
        size = (height, width)
        if size not in bucket_of:
            bucket_of[size] = padded_size(
                view, image_hw=size, image_size=image_size, pad_multiple=pad_multiple
            )
        rows.setdefault(bucket_of[size], []).append(row)
    return rows


_INDEX_ENTRY_NBYTES = 16
_BEST_ZSTD = 0.4  # compressed over raw codes, measured on snr6; int8 reaches 0.8
_MAP_AXES = 3


class Layout:
    """Which arrays the blocks of a store have; a function of levels and codec.

    Maps that are not compressed lie cell after cell: turning them when they are read took most of
    the time of decoding. Compressed ones lie channel after channel.
    """

    def __init__(self, *, spec: FeatureSpec, codec: Codec) -> None:
        self._spec = spec
        self._codec = codec
        self._by_bucket: dict[SizeHW, dict[str, tuple[Part, ...]]] = {}

    def levels(self, bucket: SizeHW) -> Mapping[str, tuple[Part, ...]]:
        """The parts of every level, by its name."""
        if bucket not in self._by_bucket:
            self._by_bucket[bucket] = {
                level: tuple(map(_laid_out, self._codec.parts(level, shape)))
                for level, shape in self._spec.map_shapes(bucket).items()
            }
        return self._by_bucket[bucket]

    def parts(self, bucket: SizeHW) -> dict[str, Part]:
        """Every array of a bucket by its path below the bucket's group: {"C3/codes": ...}."""
        return {
            f"{level}/{part.name}": part
            for level, parts in self.levels(bucket).items()
            for part in parts
        }

    def shard_keys(self, block: Block) -> dict[str, str]:
        """Key of each shard of a block, by array as in `parts`."""
        parts = self.parts(block.bucket).items()
        return {array: shard_key(block, array, part) for array, part in parts}

    def image_nbytes(self, bucket: SizeHW) -> int:
        """Bytes of one stored image: exact without zstd, else the most they can be."""
        parts = self.parts(bucket).values()
        return sum(part.packed_nbytes + _INDEX_ENTRY_NBYTES for part in parts)

    def least_nbytes(self, blocks: Iterable[Block]) -> int:
        """Bytes of these blocks where zstd does as well as it ever did on features."""
        return sum(
            len(block.rows) * sum(map(_least_nbytes, self.parts(block.bucket).values()))
            for block in blocks
        )


def _laid_out(part: Part) -> Part:
    is_map = part.packing == "crc32c" and len(part.shape) == _MAP_AXES
    return replace(part, cells_last=True) if is_map else part


def _least_nbytes(part: Part) -> int:
    share = _BEST_ZSTD if part.packing == "zstd" else 1
    return round(part.packed_nbytes * share) + _INDEX_ENTRY_NBYTES


def shard_key(block: Block, array: str, part: Part) -> str:
    """Key of the file that holds a block's slots of one array (`array` as in `Layout.parts`)."""
    return f"{block.group}/{array}/c/{block.number}" + "/0" * len(part.shape)


def commit_key(block: Block) -> str:
    return f"{COMMITS}/{block.name}.json"


def withdrawn_key(block: Block) -> str:
    """Key of a record that `verify` put aside: its block is not what was committed."""
    return f"{commit_key(block)}{WITHDRAWN_SUFFIX}"


def make_metadata(*, blocks: Sequence[Block], layout: Layout, block_size: int) -> dict[str, bytes]:
    """Key and content of every zarr.json: zarr makes the groups and arrays in memory."""
    slots: dict[str, int] = {}
    buckets: dict[str, SizeHW] = {}
    for block in blocks:
        slots[block.group] = slots.get(block.group, 0) + len(block.rows)
        buckets[block.group] = block.bucket
    made: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(made), zarr_format=3)
    for path, num_slots in slots.items():
        bucket_group = group.require_group(path)
        for array, part in layout.parts(buckets[path]).items():
            level, _, name = array.partition("/")
            _create_array(bucket_group.require_group(level), name, part, num_slots, block_size)
    files = {key: content.to_bytes() for key, content in made.items()}
    return {**files, METADATA: with_listing(files)}


def metadata_keys(blocks: Iterable[Block], layout: Layout) -> list[str]:
    """Keys of every zarr.json of the store, sorted."""
    folders = {""}
    for group, bucket in {block.group: block.bucket for block in blocks}.items():
        for array in layout.parts(bucket):
            path = f"{group}/{array}"
            while path:
                folders.add(path)
                path = path.rpartition("/")[0]
    return sorted(f"{folder}/{METADATA}" if folder else METADATA for folder in folders)


def metadata_digest(contents: Mapping[str, bytes]) -> str:
    """sha256 over the keys and contents of all zarr.json files, the root's without its listing."""
    plain = {METADATA: split_listing(contents[METADATA])[0]}
    return digest_files(sorted({**contents, **plain}.items()))


def digest_files(contents: Iterable[tuple[str, bytes]]) -> str:
    """sha256 over (key, content) in the order of the keys, one at a time in memory."""
    digest = hashlib.sha256()
    for key, content in contents:
        digest.update(f"{key} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _create_array(
    group: zarr.Group, name: str, part: Part, num_slots: int, block_size: int
) -> None:
    compressor: Any = (
        ZstdCodec(level=ZSTD_LEVEL, checksum=True) if part.packing == "zstd" else Crc32cCodec()
    )
    is_of_bytes = part.dtype.endswith("8")
    group.create_array(
        name,
        shape=(num_slots, *part.shape),
        chunks=(1, *part.shape),
        shards=(block_size, *part.shape),
        dtype=part.dtype,
        filters=[TransposeCodec(order=(0, 2, 3, 1))] if part.cells_last else None,
        serializer=BytesCodec(endian=None if is_of_bytes else "little"),
        compressors=[compressor],
        fill_value=float("nan") if part.dtype.startswith("float") else 0,
    )

"""Writing a store: whole shards, fsync, then the commit record. One writer at a time.

Letters: n pictures of a block, C channels, h w feature cells, B pictures per shard.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec

from cachedet.errors import CorruptBlockError, StoreError, StoreMismatchError
from cachedet.store.blocks import Block
from cachedet.store.codec import make_codec
from cachedet.store.durable import TEMPORARY_SUFFIX, sync_directory, sync_file, write_durably
from cachedet.store.manifest import (
    MANIFEST,
    TRUTH,
    Manifest,
    load_manifest,
    load_truth,
    truth_arrays,
)
from cachedet.store.records import (
    COMMITS,
    CommitRecord,
    ShardRecord,
    commit_path,
    find_fault,
    shard_path,
)
from cachedet.structures import Features, Truth


class StoreWriter:
    """Writes blocks of features into a new store or one that was interrupted.

    Attributes:
        blocks: every block the finished store has.
        nbytes_written: bytes of the shards written so far by this writer.
    """

    def __init__(self, root: Path, *, manifest: Manifest, truth: Truth) -> None:
        self.root = root
        self.manifest = manifest
        self.truth = truth
        self.nbytes_written = 0
        self.blocks = manifest.plan(truth)
        self._codec = make_codec(manifest.codec)
        self._fingerprint = manifest.fingerprint()

    @classmethod
    def open(
        cls, root: Path, *, manifest: Manifest, truth: Truth, contents: NDArray[np.uint64]
    ) -> StoreWriter:
        """Create the store, or continue one made from the same inputs.

        Args:
            root: folder of the store.
            manifest: what it shall hold.
            truth: pictures and boxes, kept inside the store.
            contents: (N,) content hash of each picture file, to notice changed pictures.

        Raises:
            StoreMismatchError: it holds features of other inputs; names each differing field.
            StoreError: the folder is something else, cannot be written, or the disk is too small
                for what is missing.
        """
        writer = cls(root, manifest=manifest, truth=truth)
        try:
            is_new = not (root / MANIFEST).exists()
            if not is_new:
                _require_same_inputs(root, manifest, truth, contents)
                writer._remove_leftovers()
            _require_space(root, writer.planned_nbytes(writer.missing_blocks()))
            if is_new:
                writer._create(contents)
        except OSError as error:
            raise _cannot_write(root, error) from error
        return writer

    def missing_blocks(self) -> list[Block]:
        """Blocks that are not committed, or whose files no longer have the committed length."""
        return [block for block in self.blocks if not self._is_committed(block)]

    def planned_nbytes(self, blocks: Sequence[Block]) -> int:
        """Bytes that writing `blocks` takes, checksums and shard indices included."""
        per_chunk = 4 + 16  # crc32c of the chunk, its entry in the shard's index
        total = 0
        for block in blocks:
            shapes = self.manifest.spec.map_shapes(block.bucket).values()
            encoded = sum(self._codec.encoded_nbytes(shape) + per_chunk for shape in shapes)
            total += len(block.rows) * encoded
        return total

    def write(self, block: Block, features: Features) -> None:
        """Encode, write, fsync and commit one block.

        Args:
            block: one of `blocks`.
            features: level -> (n, C, h, w) maps of the block's pictures, in its order.

        Raises:
            CodecError: a value cannot be represented; names the picture.
            StoreError: wrong shapes, or the disk refused.
        """
        self._require_shapes(block, features)
        pictures = [self.truth.file_names[row] for row in block.rows]
        encoded = {
            level: self._codec.encode(maps, level=level, pictures=pictures)
            for level, maps in features.items()
        }
        try:
            commit_path(self.root, block).unlink(missing_ok=True)
            shards = {
                level: self._write_shard(block, level, maps) for level, maps in encoded.items()
            }
            self._commit(block, shards)
        except OSError as error:
            needed = sum(maps.nbytes for maps in encoded.values())
            raise _cannot_write(self.root, error, needed=needed) from error
        self.nbytes_written += sum(shard.nbytes for shard in shards.values())

    def _create(self, contents: NDArray[np.uint64]) -> None:
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            unfinished = (self.root / COMMITS).is_dir()
            if not unfinished or any((self.root / COMMITS).iterdir()):
                raise StoreError(
                    f"{self.root} exists and is not a feature store (it has no {MANIFEST}); "
                    "choose another --store"
                )
            shutil.rmtree(self.root)
        (self.root / COMMITS).mkdir(parents=True)
        group = zarr.create_group(self.root, zarr_format=3)
        self._create_arrays(group)
        stored = io.BytesIO()
        arrays: dict[str, Any] = {**truth_arrays(self.truth), "contents": contents}
        np.savez(stored, **arrays)
        write_durably(self.root / TRUTH, stored.getvalue())
        for path in self.root.rglob("zarr.json"):
            sync_file(path)
            sync_directory(path.parent)
        text = json.dumps(self.manifest.to_json(), indent=1)
        write_durably(self.root / MANIFEST, text.encode())

    def _create_arrays(self, group: zarr.Group) -> None:
        slots: dict[str, int] = {}
        buckets = {}
        for block in self.blocks:
            slots[block.group] = slots.get(block.group, 0) + len(block.rows)
            buckets[block.group] = block.bucket
        for path, num_slots in slots.items():
            bucket_group = group.require_group(path)
            for level, shape in self.manifest.spec.map_shapes(buckets[path]).items():
                bucket_group.create_array(
                    level,
                    shape=(num_slots, *shape),
                    chunks=(1, *shape),
                    shards=(self.manifest.block_size, *shape),
                    dtype=self._codec.dtype,
                    serializer=BytesCodec(endian="little"),
                    compressors=[Crc32cCodec()],
                    fill_value=float("nan"),
                    config={"write_empty_chunks": True},
                )

    def _remove_leftovers(self) -> None:
        """Files a dead writer had not finished; no reader ever looks at them."""
        for path in self.root.rglob("*"):
            if path.name.endswith((".partial", TEMPORARY_SUFFIX)):
                path.unlink()

    def _is_committed(self, block: Block) -> bool:
        path = commit_path(self.root, block)
        if not path.exists():
            return False
        try:
            record = CommitRecord.read(path)
        except CorruptBlockError:
            return False
        return (
            record.fingerprint == self._fingerprint
            and find_fault(self.root, record, deep=False) is None
        )

    def _require_shapes(self, block: Block, features: Features) -> None:
        shapes = self.manifest.spec.map_shapes(block.bucket)
        expected = {level: (len(block.rows), *shape) for level, shape in shapes.items()}
        found = {level: tuple(maps.shape) for level, maps in features.items()}
        if found != expected:
            raise StoreError(f"block {block.name}: expected maps {expected}, got {found}")

    def _write_shard(self, block: Block, level: str, encoded: NDArray[np.generic]) -> ShardRecord:
        array = zarr.open_array(self.root, path=f"{block.group}/{level}", mode="r+")
        array = array.with_config({"write_empty_chunks": True})
        start = block.number * self.manifest.block_size
        path = shard_path(block, level)
        # zarr reads the shard it is about to fill partly: what is left of an old one must be gone.
        (self.root / path).unlink(missing_ok=True)
        array[start : start + len(block.rows)] = encoded
        sync_file(self.root / path)
        for parent in list((self.root / path).parents)[:5]:  # c/<number>/0/0 up to the level
            sync_directory(parent)
        return ShardRecord.of_file(self.root, path)

    def _commit(self, block: Block, shards: dict[str, ShardRecord]) -> None:
        record = CommitRecord(
            block=block.name,
            image_ids=tuple(int(self.truth.image_ids[row]) for row in block.rows),
            fingerprint=self._fingerprint,
            shards=shards,
        )
        write_durably(commit_path(self.root, block), record.to_bytes())


def _require_same_inputs(
    root: Path, manifest: Manifest, truth: Truth, contents: NDArray[np.uint64]
) -> None:
    stored = load_manifest(root)
    fields = stored.differing_fields(manifest)
    if not fields:
        return
    message = f"{root} was extracted from other inputs. " + "; ".join(fields)
    if stored.pictures_digest != manifest.pictures_digest:
        old_truth, old_contents = load_truth(root, stored)
        before = dict(zip(old_truth.file_names, old_contents.tolist(), strict=True))
        now = dict(zip(truth.file_names, contents.tolist(), strict=True))
        changed = sorted(name for name in before.keys() | now if before.get(name) != now.get(name))
        message += f"; pictures changed, added or gone: {', '.join(changed[:10])}"
        message += f" and {len(changed) - 10} more" if len(changed) > 10 else ""
    raise StoreMismatchError(f"{message}. Extract into a new --store, or give the same inputs")


def _require_space(root: Path, needed: int) -> None:
    free = _free_nbytes(root)
    if needed > free:
        raise StoreError(
            f"{root}: {needed / 1e9:.2f} GB are still to be written, the disk has "
            f"{free / 1e9:.2f} GB free. Free space, choose another --store, "
            "a smaller --image-size, fewer --views or a smaller --codec"
        )


def _free_nbytes(root: Path) -> int:
    existing = next(path for path in (root, *root.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _cannot_write(root: Path, error: OSError, *, needed: int | None = None) -> StoreError:
    free = _free_nbytes(root)
    wanted = f"; this block needs {needed / 1e6:.1f} MB" if needed is not None else ""
    return StoreError(
        f"cannot write {error.filename or root}: {error.strerror}{wanted}, "
        f"{free / 1e6:.1f} MB are free. What was committed is safe: mend the cause and run the "
        "same command again"
    )

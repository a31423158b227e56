"""Reading a store: a feature is exactly what was committed, or an exception (law L4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from cachedet.data.views import VIEWS, Geometry, make_geometry, make_targets
from cachedet.errors import CorruptBlockError, MissingFeatureError, StoreError
from cachedet.store.blocks import Block
from cachedet.store.codec import make_codec
from cachedet.store.manifest import Manifest, load_manifest, load_truth, truth_digest
from cachedet.store.records import COMMITS, CommitRecord, commit_path, find_fault
from cachedet.structures import Features, SizeHW, Targets, Truth


@dataclass(frozen=True)
class _Place:
    """Where the maps of one (picture, view) lie."""

    block: Block
    slot: int


class FeatureStore:
    """The committed part of a store at the moment it was opened.

    Attributes:
        manifest: what the store holds.
        truth: its pictures and boxes.
        blocks: every block the finished store has, committed or not.
    """

    def __init__(
        self, root: Path, *, manifest: Manifest, truth: Truth, blocks: tuple[Block, ...]
    ) -> None:
        self.root = root
        self.manifest = manifest
        self.truth = truth
        self.blocks = blocks
        self._codec = make_codec(manifest.codec)
        self._places = _index_blocks(blocks, manifest.block_size)
        self._records = _read_records(root, blocks, manifest.fingerprint())
        self._checked: set[str] = set()
        self._arrays: dict[str, zarr.Array[Any]] = {}

    @classmethod
    def open(cls, root: Path) -> FeatureStore:
        """Open a store for reading.

        Raises:
            StoreError: no store there, a newer format, or damaged metadata.
            CorruptBlockError: a damaged commit record.
        """
        manifest, truth, blocks = load_plan(root)
        return cls(root, manifest=manifest, truth=truth, blocks=blocks)

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def nbytes(self) -> int:
        """Bytes of all committed shards."""
        return sum(s.nbytes for record in self._records.values() for s in record.shards.values())

    def missing_blocks(self) -> list[Block]:
        """Blocks that were not committed when the store was opened."""
        return [block for block in self.blocks if block.name not in self._records]

    def require_complete(self) -> None:
        """Raises MissingFeatureError while blocks are missing."""
        missing = self.missing_blocks()
        if missing:
            raise MissingFeatureError(
                f"{self.root} is unfinished: {len(missing)} of {len(self.blocks)} blocks are not "
                "committed; run the same `cachedet extract` command again, it continues"
            )

    def geometry(self, row: int, view: str) -> Geometry:
        """How `view` maps picture `row`."""
        self._place(row, view)
        return make_geometry(
            VIEWS[view],
            picture_hw=self.truth.size_of(row),
            image_size=self.manifest.image_size,
            pad_multiple=self.manifest.spec.pad_multiple,
        )

    def targets(self, row: int, view: str) -> Targets:
        """Boxes of picture `row` in pixels of `view`."""
        return make_targets(self.truth, row, self.geometry(row, view))

    def buckets(self, view: str) -> dict[SizeHW, NDArray[np.int64]]:
        """Rows by padded size of their view. Raises MissingFeatureError on an unknown view."""
        self._require_view(view)
        rows: dict[SizeHW, list[int]] = {}
        for block in self.blocks:
            if block.view == view:
                rows.setdefault(block.bucket, []).extend(block.rows)
        return {bucket: np.array(members, dtype=np.int64) for bucket, members in rows.items()}

    def read(self, row: int, view: str, levels: Sequence[str] | None = None) -> Features:
        """Maps (C, h, w) float32 of picture `row` in `view`, all levels or those named.

        Raises:
            MissingFeatureError: never committed, or an unknown picture, view or level.
            CorruptBlockError: the bytes are not what was committed; names the file.
        """
        place = self._place(row, view)
        self._check_block(place.block)
        wanted = self.manifest.spec.names if levels is None else levels
        return {level: self._read_map(place, level) for level in wanted}

    def _place(self, row: int, view: str) -> _Place:
        self._require_view(view)
        if (view, row) not in self._places:
            raise MissingFeatureError(f"{self.root} has rows 0 to {len(self) - 1}, got row {row}")
        return self._places[view, row]

    def _require_view(self, view: str) -> None:
        if view not in self.manifest.views:
            raise MissingFeatureError(
                f"{self.root} holds views {', '.join(self.manifest.views)}, not {view!r}; "
                "extract that view into a new store"
            )

    def _check_block(self, block: Block) -> None:
        """Before its first use: the block is committed and its files have the right length."""
        if block.name in self._checked:
            return
        if block.name not in self._records:
            raise MissingFeatureError(
                f"{self.root}: block {block.name} was never committed; "
                "run the same `cachedet extract` command again"
            )
        fault = find_fault(self.root, self._records[block.name], deep=False)
        if fault is not None:
            raise _corrupt(*fault)
        self._checked.add(block.name)

    def _read_map(self, place: _Place, level: str) -> torch.Tensor:
        if level not in self.manifest.spec.names:
            held = ", ".join(self.manifest.spec.names)
            raise MissingFeatureError(f"{self.root} holds levels {held}, not {level!r}")
        try:
            encoded = self._array(f"{place.block.group}/{level}")[place.slot]
        except Exception as error:  # zarr raises a different type for each damage
            raise _corrupt(self._shard(place, level), str(error)) from error
        decoded = self._codec.decode(np.asarray(encoded))
        if not bool(torch.isfinite(decoded).all()):
            raise _corrupt(self._shard(place, level), "it holds values that were never written")
        return decoded

    def _array(self, path: str) -> zarr.Array[Any]:
        if path not in self._arrays:
            self._arrays[path] = zarr.open_array(self.root, path=path, mode="r")
        return self._arrays[path]

    def _shard(self, place: _Place, level: str) -> Path:
        return self.root / self._records[place.block.name].shards[level].path


def load_plan(root: Path) -> tuple[Manifest, Truth, tuple[Block, ...]]:
    """What the finished store at `root` holds, without looking at any commit.

    Raises StoreError: no store there, a newer format, or damaged metadata.
    """
    manifest = load_manifest(root)
    unknown = [name for name in manifest.views if name not in VIEWS]
    if unknown:
        raise StoreError(f"{root} holds views {unknown} this cachedet does not know; upgrade it")
    truth, _ = load_truth(root, manifest)
    if truth_digest(truth) != manifest.truth_digest:
        raise StoreError(f"{root}: truth.npz is not the one this store was extracted with")
    return manifest, truth, manifest.plan(truth)


def _index_blocks(blocks: Sequence[Block], block_size: int) -> dict[tuple[str, int], _Place]:
    return {
        (block.view, row): _Place(block, block.number * block_size + slot)
        for block in blocks
        for slot, row in enumerate(block.rows)
    }


def _read_records(root: Path, blocks: Sequence[Block], fingerprint: str) -> dict[str, CommitRecord]:
    present = {path.name for path in (root / COMMITS).glob("*.json")}
    records = {}
    for block in blocks:
        path = commit_path(root, block)
        if path.name not in present:
            continue
        record = CommitRecord.read(path)
        if record.block != block.name or record.fingerprint != fingerprint:
            raise CorruptBlockError(
                f"{path} belongs to another store or block; remove it and run `extract` again"
            )
        records[block.name] = record
    return records


def _corrupt(path: Path, reason: str) -> CorruptBlockError:
    return CorruptBlockError(
        f"{path}: {reason}. Run `cachedet verify STORE --deep` to list every damaged block"
    )

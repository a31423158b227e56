"""Checking and describing a store without training on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cachedet.errors import CorruptBlockError
from cachedet.store.blocks import Block
from cachedet.store.layout import commit_key, withdrawn_key
from cachedet.store.plan import StorePlan
from cachedet.store.reader import FeatureStore
from cachedet.store.records import Quality, find_fault, read_record
from cachedet.store.source import LocalFiles


@dataclass(frozen=True, kw_only=True)
class BadBlock:
    """A committed block that is not what was written."""

    name: str
    path: str
    reason: str
    withdrawn: bool  # its record was put aside: no reader uses it, `extract` writes it anew


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify` found."""

    planned: int
    missing: tuple[str, ...]
    bad: tuple[BadBlock, ...]
    deep: bool

    @property
    def is_good(self) -> bool:
        return not self.missing and not self.bad

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.is_good,
            "deep": self.deep,
            "blocks": self.planned,
            "missing": list(self.missing),
            "bad": [vars(block) for block in self.bad],
        }


def verify_store(
    root: Path,
    *,
    deep: bool,
    on_progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Compare every block with its commit record: lengths, and with `deep` every byte.

    The record of a bad block is put aside, so that no reader uses it and the next `extract` writes
    it anew; where the store is read-only it stays.

    Args:
        root: folder of the store.
        deep: read every byte.
        on_progress: called with (blocks, bytes) that were checked.

    Raises StoreError where the store cannot be opened at all.
    """
    plan = StorePlan.load(LocalFiles(root))
    plan.require_metadata()
    missing: list[str] = []
    bad: list[BadBlock] = []
    for block in plan.blocks:
        nbytes = 0
        try:
            record = read_record(plan.source, block)
        except FileNotFoundError:
            missing.append(block.name)
        except CorruptBlockError as error:
            where = plan.source.describe(commit_key(block))
            bad.append(_withdraw(root, block, where, str(error).removeprefix(f"{where}: ")))
        else:
            nbytes = sum(shard.nbytes for shard in record.shards.values())
            fault = find_fault(plan.source, block, record, plan.layout, deep=deep)
            if fault is not None:
                bad.append(_withdraw(root, block, *fault))
        if on_progress is not None:
            on_progress(1, nbytes if deep else 0)
    return VerifyReport(planned=len(plan.blocks), missing=tuple(missing), bad=tuple(bad), deep=deep)


def count_blocks(root: Path) -> int:
    """Blocks of the finished store. Raises StoreError where the store cannot be opened."""
    return len(StorePlan.load(LocalFiles(root)).blocks)


def _withdraw(root: Path, block: Block, where: str, reason: str) -> BadBlock:
    try:
        os.replace(root / commit_key(block), root / withdrawn_key(block))
        withdrawn = True
    except OSError:  # read-only: reported, and left to its owner
        withdrawn = False
    return BadBlock(name=block.name, path=where, reason=reason, withdrawn=withdrawn)


def describe_store(root: Path | str) -> dict[str, Any]:
    """Everything `cachedet info` shows, as JSON values."""
    store = FeatureStore.open(root)
    manifest, truth = store.manifest, store.truth
    missing = len(store.missing_blocks())
    boxes_per_class = np.bincount(truth.labels, minlength=len(truth.categories)).tolist()
    keys = len(truth) * len(manifest.views)
    return {
        "store": str(root),
        "backbone": manifest.backbone,
        "weights": manifest.weights,
        "weights_digest": manifest.weights_digest,
        "levels": manifest.spec.to_json(),
        "image_size": manifest.image_size,
        "views": list(manifest.views),
        "codec": manifest.codec,
        "quality": {level: _quality(found) for level, found in store.quality.items()},
        "pictures": len(truth),
        "boxes": len(truth.labels),
        "crowd_boxes": int(truth.crowd.sum()),
        "pictures_without_boxes": int((np.diff(truth.offsets) == 0).sum()),
        "boxes_per_class": dict(zip(truth.categories.names, boxes_per_class, strict=True)),
        "buckets": {
            f"{height}x{width}": len(rows)
            for (height, width), rows in store.buckets(manifest.views[0]).items()
        },
        "blocks": len(store.blocks),
        "blocks_missing": missing,
        "bytes": store.nbytes,
        "bytes_per_picture_and_view": store.nbytes / keys if keys and not missing else None,
        "skipped": [list(pair) for pair in manifest.skipped],
        "fingerprint": manifest.fingerprint(),
        "versions": manifest.versions,
    }


def _quality(found: Quality) -> dict[str, float | None]:
    return {"snr_db": found.decibels, "saturation": found.saturation}

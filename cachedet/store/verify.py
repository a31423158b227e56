"""Checking and describing a store without training on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cachedet.errors import CorruptBlockError
from cachedet.store.blocks import Block
from cachedet.store.reader import FeatureStore, load_plan
from cachedet.store.records import CommitRecord, commit_path, find_fault


@dataclass(frozen=True, kw_only=True)
class BadBlock:
    """A committed block that is not what was written."""

    name: str
    path: Path
    reason: str
    record: Path  # remove this file and `extract` writes the block anew


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
            "bad": [{k: str(v) for k, v in vars(block).items()} for block in self.bad],
        }


def verify_store(
    root: Path, *, deep: bool, on_progress: Callable[[int], None] | None = None
) -> VerifyReport:
    """Compare every block with its commit record: lengths, and with `deep` every byte.

    Raises StoreError where the store cannot be opened at all.
    """
    _, _, blocks = load_plan(root)
    missing: list[str] = []
    bad: list[BadBlock] = []
    for block in blocks:
        path = commit_path(root, block)
        if not path.exists():
            missing.append(block.name)
        else:
            bad.extend(_faults(root, block, path, deep=deep))
        if on_progress is not None:
            on_progress(1)
    return VerifyReport(
        planned=len(blocks),
        missing=tuple(missing),
        bad=tuple(bad),
        deep=deep,
    )


def _faults(root: Path, block: Block, path: Path, *, deep: bool) -> list[BadBlock]:
    try:
        fault = find_fault(root, CommitRecord.read(path), deep=deep)
    except CorruptBlockError as error:
        fault = path, str(error)
    if fault is None:
        return []
    return [BadBlock(name=block.name, path=fault[0], reason=fault[1], record=path)]


def describe_store(root: Path) -> dict[str, Any]:
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

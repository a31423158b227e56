"""Checking and describing a store without training on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cachedet.errors import RemoteStoreError, StoreError
from cachedet.store.files.bucket import Bucket
from cachedet.store.files.depot import Depot, Place, open_depot
from cachedet.store.files.locations import shown
from cachedet.store.format.commits import Fault, check_block
from cachedet.store.format.layout import Block, commit_key, withdrawn_key
from cachedet.store.format.plan import StorePlan
from cachedet.store.format.stages import load_stages
from cachedet.store.reader import FeatureStore


@dataclass(frozen=True, kw_only=True)
class BadBlock:
    """A committed block that is not what was written."""

    name: str
    path: str
    reason: str
    withdrawn: bool  # its record was put aside: no reader uses it, `extract` writes it anew


@dataclass(frozen=True, kw_only=True)
class UnreadableBlock:
    """A block that could not be read this time, which proves no damage."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify` found."""

    planned: int
    missing: tuple[str, ...]
    bad: tuple[BadBlock, ...]
    unreadable: tuple[UnreadableBlock, ...]
    deep: bool
    stages: str | None = None  # what is wrong with the weights of the stages

    @property
    def good(self) -> int:
        return self.planned - len(self.missing) - len(self.bad) - len(self.unreadable)

    @property
    def is_good(self) -> bool:
        return self.good == self.planned and self.stages is None

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.is_good,
            "deep": self.deep,
            "blocks": self.planned,
            "missing": list(self.missing),
            "bad": [vars(block) for block in self.bad],
            "unreadable": [vars(block) for block in self.unreadable],
            "stages": self.stages,
        }


def verify_store(
    place: Place, *, deep: bool, on_progress: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """Compare every block with its commit record: lengths, and with `deep` every byte.

    The record of a block that is proven bad is put aside, so that no reader uses it and the next
    `extract` writes it anew; where the store is read-only it stays. What cannot be read this time
    is only reported.

    `on_progress` is called with (blocks, bytes) that were checked.

    Raises StoreError where the store cannot be opened at all.
    """
    depot = open_depot(place)
    plan = StorePlan.load(depot.source)
    plan.require_metadata()
    missing: list[str] = []
    bad: list[BadBlock] = []
    unreadable: list[UnreadableBlock] = []
    for block in plan.needed:
        nbytes = 0
        try:
            nbytes, fault = check_block(plan, block, deep=deep)
            bad += _withdraw(depot, plan, block, fault, deep=deep) if fault is not None else []
        except FileNotFoundError:
            missing.append(block.name)
        except StoreError as error:
            unreadable.append(UnreadableBlock(name=block.name, reason=str(error)))
        if on_progress is not None:
            on_progress(1, nbytes if deep else 0)
    return VerifyReport(
        planned=len(plan.needed),
        missing=tuple(missing),
        bad=tuple(bad),
        unreadable=tuple(unreadable),
        deep=deep,
        stages=_find_fault_of_stages(plan),
    )


def _find_fault_of_stages(plan: StorePlan) -> str | None:
    """What is wrong with their weights, where the store has any."""
    if not plan.manifest.stages_digest:
        return None
    try:
        load_stages(plan.source, plan.manifest)
    except StoreError as error:
        return str(error)
    return None


def _withdraw(
    depot: Depot, plan: StorePlan, block: Block, fault: Fault, *, deep: bool
) -> list[BadBlock]:
    """Put a bad record aside; empty where a writer has put the block right meanwhile.

    Raises what `check_block` raises.
    """
    withdrawn = True
    try:
        with depot.changing():
            _, still = check_block(plan, block, deep=deep)
            if still is None:
                return []
            fault = still
            if isinstance(depot, Bucket):
                depot.put({withdrawn_key(block): depot.source.read(commit_key(block))})
                depot.remove([commit_key(block)])
            else:
                root = depot.folder
                os.replace(root / commit_key(block), root / withdrawn_key(block))
    except FileNotFoundError:
        raise
    except (OSError, RemoteStoreError):  # read-only: reported, and left to its owner
        withdrawn = False
    return [BadBlock(name=block.name, path=fault.where, reason=fault.reason, withdrawn=withdrawn)]


def count_blocks(place: Place) -> int:
    """Blocks of the finished store. Raises StoreError where the store cannot be opened."""
    return len(StorePlan.load(open_depot(place).source).needed)


def describe_store(root: Path | str) -> dict[str, Any]:
    """Everything `cachedet info` shows, as JSON values."""
    store = FeatureStore.open(root)
    manifest, annotations = store.manifest, store.annotations
    missing = len(store.missing_blocks())
    boxes = np.bincount(annotations.labels, minlength=store.num_classes).tolist()
    keys = len(annotations) * len(store.views)
    return {
        "store": shown(root),
        "backbone": manifest.backbone,
        "weights": manifest.weights,
        "weights_digest": manifest.weights_digest,
        "levels": store.spec.to_json(),
        "network_levels": manifest.network.to_json(),
        "has_stage_weights": bool(manifest.stages_digest),
        "image_size": manifest.image_size,
        "views": list(store.views),
        "codec": manifest.codec,
        "quality": {
            level: {"snr_db": quality.decibels, "saturation": quality.saturation}
            for level, quality in store.quality.items()
        },
        "images": len(annotations),
        "images_withdrawn": store.images_withdrawn,
        "boxes": len(annotations.labels),
        "crowd_boxes": int(annotations.crowd.sum()),
        "images_without_boxes": int((np.diff(annotations.offsets) == 0).sum()),
        "boxes_per_class": dict(zip(store.class_names, boxes, strict=True)),
        "buckets": {
            f"{height}x{width}": len(rows)
            for (height, width), rows in store.buckets(store.views[0]).items()
        },
        "blocks": len(store.blocks),
        "blocks_missing": missing,
        "bytes": store.nbytes,
        "bytes_of_withdrawn": store.withdrawn_nbytes(),
        "bytes_per_image_and_view": store.nbytes / keys if keys and not missing else None,
        "skipped": [list(pair) for pair in manifest.skipped],
        "fingerprint": manifest.fingerprint(),
        "truth_digest": manifest.truth_digest,
        "versions": manifest.versions,
    }

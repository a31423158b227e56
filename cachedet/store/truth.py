"""Boxes and classes of a store replaced, images taken out or back, its features left as they are.

The new truth is a file of another name; the manifest's rename is the moment it counts. So the store
has the old boxes or the new ones, whole, whenever the writer dies.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cachedet.errors import StoreError
from cachedet.store.files.durable import cannot_write, write_durably
from cachedet.store.files.inside import remove_inside
from cachedet.store.files.leases import commit_lock
from cachedet.store.files.names import MANIFEST, images_key, is_table_key, truth_key
from cachedet.store.files.places import find_obstacle
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.commits import find_held
from cachedet.store.format.manifest import (
    NO_ROWS,
    Manifest,
    encode_manifest,
    load_manifest,
    truth_arrays,
    truth_digest,
    withdrawn_digest,
)
from cachedet.store.format.npz import dump_arrays
from cachedet.store.format.plan import StorePlan
from cachedet.structures import Annotations


def replace_truth(
    root: Path,
    held: Manifest,
    annotations: Annotations,
    *,
    withdrawn: NDArray[np.int64] = NO_ROWS,
    back: NDArray[np.int64] = NO_ROWS,
) -> None:
    """Give the store these boxes, masks and classes of its images; `held` is its manifest so far.

    `annotations` are by rows of the store, `withdrawn` the rows that are no images of it, `back`
    those that are again and have to have features.

    Writers of blocks may be at work: blocks hang on no box. The boxes before stay in the store as
    a file that nobody names, for readers that are just opening it; the next call, or `prune`,
    removes them.

    Raises StoreError where the store was relabelled or replaced since `held` was read, or cannot
    be written.
    """
    obstacle = find_obstacle(root)
    if obstacle is not None:
        raise cannot_write(root, obstacle)
    digest = truth_digest(annotations, withdrawn)
    try:
        with commit_lock(root):
            now = load_manifest(LocalFiles(root))
            if _identity(now) != _identity(held):
                raise StoreError(
                    f"{root} was relabelled or replaced by another process meanwhile; nothing was "
                    "changed by this one. Run the same command again: it compares with what the "
                    "store has now"
                )
            if len(back):
                _require_features(root, back)
            new = replace(
                now,
                truth_digest=digest,
                withdrawn_digest=withdrawn_digest(withdrawn),
                categories=annotations.categories,
            )
            content = encode_manifest(new)
            for path in unnamed_tables(root, now):
                remove_inside(root, path)
            arrays = truth_arrays(annotations, withdrawn)
            write_durably(root / truth_key(digest), dump_arrays(arrays))
            write_durably(root / MANIFEST, content)
    except OSError as error:
        raise cannot_write(root, error) from error


def _require_features(root: Path, rows: NDArray[np.int64]) -> None:
    """Under the lock: `prune` may have freed them since they were seen. Raises StoreError."""
    if len(find_held(StorePlan.load(LocalFiles(root)), rows)) < len(rows):
        raise StoreError(
            f"{root}: features of images that come back were freed by another process meanwhile; "
            "nothing was changed. Run the same command again: it looks at what the store has now"
        )


def unnamed_tables(root: Path, manifest: Manifest) -> set[Path]:
    """Files of boxes or images that the manifest does not name; links are none.

    The store had them before, or a writer left them who died.
    """
    named = {truth_key(manifest.truth_digest)}
    named.update(images_key(*pair) for pair in enumerate(manifest.image_digests))
    with os.scandir(root) as entries:
        return {
            root / entry.name
            for entry in entries
            if is_table_key(entry.name)
            and entry.name not in named
            and entry.is_file(follow_symlinks=False)
        }


def _identity(manifest: Manifest) -> tuple[str, str]:
    return " ".join(manifest.image_digests), manifest.truth_digest

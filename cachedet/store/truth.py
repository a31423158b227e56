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
from cachedet.store.files.depot import Depot, Place, open_depot
from cachedet.store.files.durable import cannot_write
from cachedet.store.files.names import images_key, is_table_key, truth_key
from cachedet.store.files.places import find_obstacle
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
    place: Place,
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
    depot = open_depot(place)
    root = depot.folder
    obstacle = None if root is None else find_obstacle(root)
    if obstacle is not None:
        raise cannot_write(root or Path(), obstacle)
    digest = truth_digest(annotations, withdrawn)
    try:
        with depot.changing():
            now = load_manifest(depot.source)
            if _identity(now) != _identity(held):
                raise StoreError(
                    f"{depot} was relabelled or replaced by another process meanwhile; nothing was "
                    "changed by this one. Run the same command again: it compares with what the "
                    "store has now"
                )
            if len(back):
                _require_features(depot, back)
            new = replace(
                now,
                truth_digest=digest,
                withdrawn_digest=withdrawn_digest(withdrawn),
                categories=annotations.categories,
            )
            content = encode_manifest(new)
            if root is not None:  # in an object storage another one may just be written
                depot.remove(path.name for path in unnamed_tables(root, now))
            arrays = truth_arrays(annotations, withdrawn)
            depot.put({truth_key(digest): dump_arrays(arrays)})
            depot.put_manifest(content)
    except OSError as error:
        raise cannot_write(root or Path(), error) from error


def _require_features(depot: Depot, rows: NDArray[np.int64]) -> None:
    """Under the lock: `prune` may have freed them since they were seen. Raises StoreError."""
    if len(find_held(StorePlan.load(depot.source), rows)) < len(rows):
        raise StoreError(
            f"{depot}: features of images that come back were freed by another process meanwhile; "
            "nothing was changed. Run the same command again: it looks at what the store has now"
        )


def unnamed_tables(root: Path, manifest: Manifest) -> set[Path]:
    """Files of boxes or images that the manifest does not name; links are none.

    The store had them before, or a writer left them who died.
    """
    named = named_tables(manifest)
    with os.scandir(root) as entries:
        return {
            root / entry.name
            for entry in entries
            if is_table_key(entry.name)
            and entry.name not in named
            and entry.is_file(follow_symlinks=False)
        }


def named_tables(manifest: Manifest) -> set[str]:
    """Keys of the files of boxes and images that the manifest names."""
    images = (images_key(*pair) for pair in enumerate(manifest.image_digests))
    return {truth_key(manifest.truth_digest), *images}


def _identity(manifest: Manifest) -> tuple[str, str]:
    return " ".join(manifest.image_digests), manifest.truth_digest

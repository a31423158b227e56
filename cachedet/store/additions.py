"""Images that come to a store later: its own keep their rows, so that no block of it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cachedet.errors import StoreError
from cachedet.store.files.depot import Place, open_depot
from cachedet.store.files.names import MANIFEST
from cachedet.store.format.annotations import load_images
from cachedet.store.format.manifest import Manifest, images_digest, load_manifest
from cachedet.structures import Annotations

Added = tuple[tuple[int, str], ...]


@dataclass(frozen=True, kw_only=True)
class StoredOrder:
    """The order in which a store keeps images."""

    rows: list[int]  # of the data set
    starts: tuple[int, ...] = (0,)  # places in `rows` where generations start
    added: int = 0  # images that the store lacks, the last ones


def order_as_stored(place: Place, file_names: Sequence[str], rows: list[int]) -> StoredOrder:
    """How the store keeps these rows of a data set whose images have these names.

    Images that the store has stand as they are in it; others are a generation of their own behind
    them. Where there is no store yet, where it holds others, or where what it holds cannot be read,
    the order stays: comparing the digests will tell.

    Raises StoreError where its manifest is damaged.
    """
    depot = open_depot(place)
    if not depot.has(MANIFEST):
        return StoredOrder(rows=rows)
    source = depot.source
    manifest = load_manifest(source)
    try:
        held, _ = load_images(source, manifest)
    except StoreError:
        return StoredOrder(rows=rows, starts=manifest.starts)
    row_of = {file_names[row]: row for row in rows}
    known = [row_of[name] for name in held.file_names if name in row_of]
    if len(known) < len(held):
        return StoredOrder(rows=rows)
    own = {*known}
    others = [row for row in rows if row not in own]
    starts = (*manifest.starts, len(held)) if others else manifest.starts
    return StoredOrder(rows=[*known, *others], starts=starts, added=len(others))


def digest_generations(
    annotations: Annotations, contents: NDArray[np.uint64], starts: Sequence[int]
) -> tuple[str, Added]:
    """`images_digest` and `added` of a manifest; generations of images start at these rows."""
    first, *others = [
        (rows.start, images_digest(annotations, contents, rows)) for rows in split_rows(starts)
    ]
    return first[1], tuple(others)


def split_rows(starts: Sequence[int]) -> list[slice]:
    """The rows of each generation."""
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], None], strict=True)]


def grows(held: Manifest, wanted: Manifest) -> bool:
    """Whether a store with the images of `wanted` is the one of `held` with more of them."""
    return (
        held.images_digest == wanted.images_digest
        and len(wanted.added) > len(held.added)
        and wanted.added[: len(held.added)] == held.added
    )

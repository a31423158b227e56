"""Images that come to a store later, or back: its own keep their rows, so that no block changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cachedet.errors import StoreError
from cachedet.store.files.depot import Place, open_depot
from cachedet.store.files.names import MANIFEST
from cachedet.store.files.source import ByteSource
from cachedet.store.format.annotations import load_images, load_truth, spread, spread_rows
from cachedet.store.format.manifest import (
    Manifest,
    images_digest,
    load_manifest,
    withdrawn_digest,
)
from cachedet.structures import Annotations

Added = tuple[tuple[int, str], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredOrder:
    """The images of a data set by rows of a store, between those that were taken out of it."""

    annotations: Annotations
    contents: NDArray[np.uint64]  # (N,) hash of each image file
    rows: Sequence[int | None]  # N of the data set; None: it was taken out
    starts: tuple[int, ...] = (0,)  # rows of the store where generations start
    added: int = 0  # images that the store lacks, the last ones
    returned: int = 0  # images that were taken out and are in the data set again

    @classmethod
    def as_given(
        cls, annotations: Annotations, contents: NDArray[np.uint64], rows: list[int]
    ) -> StoredOrder:
        """These rows of a data set as they stand there."""
        return cls(annotations=annotations.keep_rows(rows), contents=contents[rows], rows=rows)

    @property
    def withdrawn(self) -> NDArray[np.int64]:
        """Rows of the images that are none of the store's."""
        lost = [row for row, known in enumerate(self.rows) if known is None]
        return np.array(lost, dtype=np.int64)


def order_as_stored(
    place: Place, annotations: Annotations, contents: NDArray[np.uint64], rows: list[int]
) -> StoredOrder:
    """How the store keeps these rows of a data set.

    Images that the store has stand as they are in it; one that was taken out is back where its
    name, id, size and content are those it had. Others are a generation of their own behind them.
    Where there is no store yet, where it holds others, or where what it holds cannot be read, the
    order stays: comparing the digests will tell.

    Raises StoreError where its manifest, or what it says of images taken out, is damaged.
    """
    as_given = StoredOrder.as_given(annotations, contents, rows)
    depot = open_depot(place)
    if not depot.has(MANIFEST):
        return as_given
    source = depot.source
    manifest = load_manifest(source)
    try:
        held, held_contents = load_images(source, manifest)
    except StoreError:
        return replace(as_given, starts=manifest.starts)
    row_of = {annotations.file_names[row]: row for row in rows}
    withdrawn = _find_withdrawn(source, manifest, held, [*row_of])
    active = {name for row, name in enumerate(held.file_names) if row not in withdrawn}
    if not active <= row_of.keys():
        return as_given
    places = [row_of.get(name) for name in held.file_names]
    for row in withdrawn:
        given, is_taken = places[row], held.file_names[row] in active
        if given is not None and (
            is_taken or not _is_same(held, held_contents, row, annotations, contents, given)
        ):
            places[row] = None
    own = {*places}
    others = [row for row in rows if row not in own]
    starts = (*manifest.starts, len(held)) if others else manifest.starts
    return _lay_out(
        StoredOrder(
            annotations=held,
            contents=held_contents,
            rows=[*places, *others],
            starts=starts,
            added=len(others),
            returned=sum(places[row] is not None for row in withdrawn),
        ),
        annotations,
        contents,
    )


def _find_withdrawn(
    source: ByteSource, manifest: Manifest, held: Annotations, names: Sequence[str]
) -> set[int]:
    """The rows that were taken out; of a damaged truth those not among `names`, if they fit it."""
    try:
        return {*load_truth(source, manifest, held)[1].tolist()}
    except StoreError:
        known = {*names}
        lost = [row for row, name in enumerate(held.file_names) if name not in known]
        if withdrawn_digest(np.array(lost, dtype=np.int64)) == manifest.withdrawn_digest:
            return {*lost}
        if manifest.withdrawn_digest:
            raise
        return set()


def _is_same(
    held: Annotations,
    held_contents: NDArray[np.uint64],
    row: int,
    annotations: Annotations,
    contents: NDArray[np.uint64],
    given: int,
) -> bool:
    return bool(
        held_contents[row] == contents[given]
        and held.image_ids[row] == annotations.image_ids[given]
        and held.size_of(row) == annotations.size_of(given)
    )


def _lay_out(
    order: StoredOrder, annotations: Annotations, contents: NDArray[np.uint64]
) -> StoredOrder:
    """With what the data set says of its images in place of what the store has."""
    given = [row for row in order.rows if row is not None]
    kept = annotations.keep_rows(given)
    if len(given) == len(order.rows):
        return replace(order, annotations=kept, contents=contents[given])
    rows = np.array([row for row, known in enumerate(order.rows) if known is not None])
    return replace(
        order,
        annotations=spread_rows(order.annotations, rows, kept),
        contents=spread(order.contents, rows, contents[given]),
    )


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

"""What the finished store holds, without looking at any commit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cachedet.data.views import VIEWS
from cachedet.errors import InputError, StoreError
from cachedet.store.blocks import Block
from cachedet.store.codec import Codec, state_digest
from cachedet.store.codecs import make_codec
from cachedet.store.layout import CODEC_STATE, MANIFEST, Layout, metadata_digest, metadata_keys
from cachedet.store.manifest import Manifest, load_arrays, load_manifest, load_truth
from cachedet.store.source import ByteSource
from cachedet.structures import Truth


@dataclass(frozen=True, kw_only=True, eq=False)
class StorePlan:
    """Everything that was decided when the store was made."""

    source: ByteSource
    manifest: Manifest
    truth: Truth
    contents: NDArray[np.uint64]  # (N,) content hash of each picture file
    codec: Codec
    layout: Layout
    blocks: tuple[Block, ...]

    @classmethod
    def load(cls, source: ByteSource) -> StorePlan:
        """Raises StoreError: no store there, another format, or damaged metadata."""
        manifest = load_manifest(source)
        unknown = [name for name in manifest.views if name not in VIEWS]
        if unknown:
            where = source.describe("")
            raise StoreError(f"{where} holds views {unknown} this cachedet does not know; upgrade")
        truth, contents = load_truth(source, manifest)
        blocks = manifest.plan(truth)
        _require_bounded(source, manifest, blocks)
        codec = load_codec(source, manifest)
        return cls(
            source=source,
            manifest=manifest,
            truth=truth,
            contents=contents,
            codec=codec,
            layout=Layout(spec=manifest.spec, codec=codec),
            blocks=blocks,
        )

    def require_metadata(self) -> None:
        """Raises StoreError where a zarr.json is not the one that was written."""
        found = {}
        for key in metadata_keys(self.blocks, self.layout):
            try:
                found[key] = self.source.read(key)
            except OSError as error:
                where = self.source.describe(key)
                raise StoreError(f"{where} is missing or cannot be read. {_REMEDY}") from error
        if metadata_digest(found) != self.manifest.metadata_digest:
            where = self.source.describe("")
            raise StoreError(f"a zarr.json in {where} is not the one that was written. {_REMEDY}")


_MOST_PICTURE_NBYTES = 8 << 30  # of decoded features
_REMEDY = "The same `cachedet extract` again writes the zarr.json files anew"


def _require_bounded(source: ByteSource, manifest: Manifest, blocks: Sequence[Block]) -> None:
    """Before anything of that size is allocated. Raises StoreError."""
    for bucket in {block.bucket for block in blocks}:
        nbytes = 4 * sum(map(math.prod, manifest.spec.map_shapes(bucket).values()))
        if nbytes > _MOST_PICTURE_NBYTES:
            raise StoreError(
                f"{source.describe(MANIFEST)}: one picture of {bucket[1]}x{bucket[0]} pixels would "
                f"take {nbytes / 1e9:.1f} GB, more than the limit of "
                f"{_MOST_PICTURE_NBYTES / 1e9:.1f} GB; extract fewer levels or smaller pictures"
            )


def load_codec(source: ByteSource, manifest: Manifest) -> Codec:
    """The fitted codec of a store. Raises StoreError where its state is missing or damaged."""
    try:
        codec = make_codec(manifest.codec)
    except InputError as error:
        raise StoreError(f"{source.describe('')}: {error}; upgrade cachedet") from error
    state = load_arrays(source, CODEC_STATE) if codec.needs_fit else {}
    if state_digest(state) != manifest.codec_digest:
        raise StoreError(
            f"{source.describe(CODEC_STATE)} is not the one this store was made with; copy it from "
            "a backup, or extract into a new --store"
        )
    return codec.with_state(state)

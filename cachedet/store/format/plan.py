"""What the finished store holds, without looking at any commit."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cachedet.data.views import is_view_name
from cachedet.errors import CorruptMetadataError, InputError, StoreError
from cachedet.store.codecs.codec import Codec, State, state_digest
from cachedet.store.codecs.registry import make_codec
from cachedet.store.files.names import CODEC_STATE, MANIFEST, METADATA
from cachedet.store.files.source import ByteSource
from cachedet.store.format.annotations import load_images, load_truth
from cachedet.store.format.layout import (
    Block,
    Layout,
    digest_files,
    make_metadata,
    metadata_digest,
    metadata_keys,
)
from cachedet.store.format.listing import agrees, split_listing
from cachedet.store.format.manifest import Manifest, load_manifest
from cachedet.store.format.npz import load_arrays
from cachedet.store.format.shards import altered, proves_damage, unreadable
from cachedet.structures import Annotations


@dataclass(frozen=True, kw_only=True, eq=False)
class StorePlan:
    """Everything that was decided when the store was made."""

    source: ByteSource
    manifest: Manifest
    annotations: Annotations  # of all N images, also of those that were taken out
    contents: NDArray[np.uint64]  # (N,) content hash of each image file
    withdrawn: NDArray[np.int64]  # rows of the images that were taken out
    codec: Codec
    layout: Layout
    blocks: tuple[Block, ...]  # also those of which no image is left

    @classmethod
    def load(cls, source: ByteSource) -> StorePlan:
        """Raises StoreError: no store there, another format, or damaged metadata."""
        try:
            return cls._load(source)
        except MemoryError as error:
            raise StoreError(
                f"the metadata of {source.describe('')} needs more memory than this process may "
                "take; open it on a larger machine, or fetch the store again if it is foreign"
            ) from error

    @classmethod
    def _load(cls, source: ByteSource) -> StorePlan:
        manifest = load_manifest(source)
        unknown = [name for name in manifest.views if not is_view_name(name)]
        if unknown:
            where = source.describe("")
            raise StoreError(
                f"{where} holds views {reprlib.repr(unknown)} this cachedet does not know; upgrade"
            )
        images, contents = load_images(source, manifest)
        try:
            annotations, withdrawn = load_truth(source, manifest, images)
        except CorruptMetadataError:
            if load_manifest(source) == manifest:
                raise
            return cls._load(source)  # it was relabelled between the two, and that truth is gone
        blocks = manifest.plan(annotations)
        _require_bounded(source, manifest, blocks)
        codec = load_codec(source, manifest)
        return cls(
            source=source,
            manifest=manifest,
            annotations=annotations,
            contents=contents,
            withdrawn=withdrawn,
            codec=codec,
            layout=Layout(spec=manifest.spec, codec=codec),
            blocks=blocks,
        )

    def fingerprint_of(self, block: Block) -> str:
        """What the commit record of a block must carry."""
        return self._fingerprints[block.generation]

    @cached_property
    def _fingerprints(self) -> tuple[str, ...]:
        return tuple(map(self.manifest.block_fingerprint, range(len(self.manifest.starts))))

    def image_ids_of(self, block: Block) -> tuple[int, ...]:
        """COCO's ids of the images of a block, in slot order."""
        return tuple(self.annotations.image_ids[list(block.rows)].tolist())

    @cached_property
    def gone(self) -> frozenset[int]:
        """`withdrawn` to be asked for single rows."""
        return frozenset(self.withdrawn.tolist())

    @cached_property
    def needed(self) -> tuple[Block, ...]:
        """The blocks that have an image which was not taken out."""
        if not self.gone:
            return self.blocks
        return tuple(block for block in self.blocks if not self.gone.issuperset(block.rows))

    def make_metadata(self) -> dict[str, bytes]:
        """Key and content of every zarr.json."""
        size = self.manifest.block_size
        return make_metadata(blocks=self.blocks, layout=self.layout, block_size=size)

    def require_metadata(self) -> None:
        """Raises StoreError where a zarr.json is not the one that was written."""
        keys = metadata_keys(self.blocks, self.layout)
        root, nodes = split_listing(self._read_metadata(METADATA))
        lies = []  # of the root

        def read(key: str) -> bytes:
            if key == METADATA:
                return root
            content = self._read_metadata(key)
            lies.extend([] if agrees(nodes, key, content) else [key])
            return content

        if digest_files((key, read(key)) for key in keys) != self.manifest.metadata_digest:
            where, words = self._altered_metadata(keys), "is not the one that was written"
            raise altered(where, words, remedy=_REPAIR_ZARR, verdict="")
        if lies:
            where, words = self.source.describe(METADATA), f"lists another {lies[0]}"
            raise altered(where, words, remedy=_REPAIR_ZARR, verdict="")

    def _read_metadata(self, key: str) -> bytes:
        try:
            return self.source.read(key)
        except OSError as error:
            where = self.source.describe(key)
            if isinstance(error, FileNotFoundError) or proves_damage(error):
                raise altered(
                    where,
                    str(error.strerror),
                    remedy=_REPAIR_ZARR,
                    verdict="is missing or damaged: ",
                ) from error
            raise unreadable(where, error) from error

    def _altered_metadata(self, keys: Sequence[str]) -> str:
        """Describe the first altered file, if this zarr writes what the manifest's zarr wrote."""
        written = self.make_metadata()
        if metadata_digest(written) == self.manifest.metadata_digest:
            for key in keys:
                if split_listing(self._read_metadata(key))[0] != split_listing(written[key])[0]:
                    return self.source.describe(key)
        return f"one of the {len(keys)} zarr.json files of {self.source.describe('')}"


_MOST_IMAGE_NBYTES = 8 << 30  # of decoded features
_REPAIR_ZARR = "The same `cachedet extract` again writes the zarr.json files anew"
_REPAIR_CODEC = (
    "The same `cachedet extract` again learns it anew and keeps that where it comes out the same "
    "(with as many threads, OMP_NUM_THREADS, on a machine of the same kind); else extract into a "
    "new --store"
)


def _require_bounded(source: ByteSource, manifest: Manifest, blocks: Sequence[Block]) -> None:
    """Before anything of that size is allocated. Raises StoreError."""
    for bucket in {block.bucket for block in blocks}:
        nbytes = 4 * sum(map(math.prod, manifest.spec.map_shapes(bucket).values()))
        if nbytes > _MOST_IMAGE_NBYTES:
            raise StoreError(
                f"{source.describe(MANIFEST)}: one image of {bucket[1]}x{bucket[0]} pixels would "
                f"take {nbytes / 1e9:.1f} GB, more than the limit of "
                f"{_MOST_IMAGE_NBYTES / 1e9:.1f} GB; extract fewer levels or smaller images"
            )


def load_codec(source: ByteSource, manifest: Manifest) -> Codec:
    """The fitted codec of a store. Raises StoreError where its state is missing or damaged."""
    return read_codec(source, manifest, digest=manifest.codec_digest)


def read_codec(source: ByteSource, manifest: Manifest, *, digest: str | None = None) -> Codec:
    """The codec with the state that lies there, of this digest where one is given.

    Raises as `load_codec`.
    """
    try:
        codec = make_codec(manifest.codec)
    except InputError as error:
        raise StoreError(f"{source.describe('')}: {error}; upgrade cachedet") from error
    state: State = {}
    if codec.needs_fit:
        wanted = {f"{level}/{n}" for level in manifest.spec.names for n in codec.state_names}
        state = load_arrays(source, CODEC_STATE, wanted=wanted, remedy=_REPAIR_CODEC)
    where = source.describe(CODEC_STATE)
    if digest is not None and state_digest(state) != digest:
        reason = "is not the one this store was made with; copy it from a backup"
        raise altered(where, reason, remedy=_REPAIR_CODEC, verdict="")
    try:
        return codec.with_state(state, spec=manifest.spec)
    except StoreError as error:
        raise StoreError(f"{where} is damaged: {error}. {_REPAIR_CODEC}") from error

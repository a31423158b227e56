"""What the benchmarks of the store share: manifests of stores that hold generated features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cachedet.store.format.manifest import Manifest, library_versions, pictures_digest, truth_digest
from cachedet.structures import FeatureSpec, Preprocessing, Truth


def contents_of(truth: Truth) -> NDArray[np.uint64]:
    """A content hash for each picture that does not exist."""
    return np.arange(len(truth), dtype=np.uint64)


def make_manifest(*, spec: FeatureSpec, truth: Truth, image_size: int, codec: str) -> Manifest:
    """Of a store with one view and blocks of 16 pictures."""
    return Manifest(
        spec=spec,
        preprocessing=Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic"),
        backbone="generated",
        weights="none",
        weights_digest="0" * 64,
        image_size=image_size,
        views=("base",),
        codec=codec,
        block_size=16,
        batch_size=8,
        truth_digest=truth_digest(truth),
        pictures_digest=pictures_digest(contents_of(truth)),
        categories=truth.categories,
        skipped=(),
        versions=library_versions(),
    )

"""What the benchmarks of the store share: manifests of stores that hold generated features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cachedet.store.format.manifest import (
    Manifest,
    images_digest,
    library_versions,
    truth_digest,
)
from cachedet.structures import Annotations, FeatureSpec, Preprocessing


def contents_of(annotations: Annotations) -> NDArray[np.uint64]:
    """A content hash for each image that does not exist."""
    return np.arange(len(annotations), dtype=np.uint64)


def make_manifest(
    *, spec: FeatureSpec, annotations: Annotations, image_size: int, codec: str
) -> Manifest:
    """Of a store with one view and blocks of 16 images."""
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
        images_digest=images_digest(annotations, contents_of(annotations)),
        truth_digest=truth_digest(annotations),
        categories=annotations.categories,
        skipped=(),
        versions=library_versions(),
        network=spec,
    )

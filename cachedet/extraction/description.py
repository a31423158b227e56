"""What a store will be of, before it is made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.config import ExtractConfig
from cachedet.data.views import View
from cachedet.store.manifest import Manifest, library_versions, pictures_digest, truth_digest
from cachedet.structures import Truth


def make_manifest(
    config: ExtractConfig,
    backbone: FrozenBackbone,
    *,
    views: Sequence[View],
    truth: Truth,
    contents: NDArray[np.uint64],
    skipped: tuple[tuple[str, str], ...],
) -> Manifest:
    """Of features of `truth`'s pictures.

    Args:
        config: of the extraction.
        backbone: whose features they are.
        views: of each picture.
        truth: of the pictures.
        contents: (N,) digest of each picture file.
        skipped: file name and reason of those left out.
    """
    return Manifest(
        spec=backbone.spec,
        preprocessing=backbone.preprocessing,
        backbone=backbone.name,
        weights=backbone.weights,
        weights_digest=backbone.digest,
        image_size=config.image_size,
        views=tuple(view.name for view in views),
        codec=config.codec,
        block_size=config.block_size,
        batch_size=config.batch_size,
        truth_digest=truth_digest(truth),
        pictures_digest=pictures_digest(contents),
        categories=truth.categories,
        skipped=skipped,
        versions=library_versions(),
    )

"""The images that a codec learns from, always the same of a data set."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.extraction.inputs import InputLoader
from cachedet.extraction.lost_channels import describe_lost_channels
from cachedet.progress import StageProgress
from cachedet.store.codecs.codec import Codec
from cachedet.store.codecs.statistics import FeatureStatistics
from cachedet.structures import Features

_log = logging.getLogger("cachedet.extract")

FIT_IMAGES = 64  # spread evenly over the data set


def fit_codec(
    codec: Codec,
    loader: InputLoader,
    backbone: FrozenBackbone,
    *,
    view: str,
    images: int | None = None,
) -> Codec:
    """Show the codec the features of a sample of the first images, one by one, always the same."""
    rows = fitted_rows(len(loader.names) if images is None else images)
    device = next(backbone.parameters()).device
    statistics = FeatureStatistics()
    features: Features = {}
    loader.expect(rows.tolist())
    with StageProgress("fit codec", total=len(rows), unit="images") as progress:
        for row in rows.tolist():
            features = backbone(loader.load(row, view)[None].to(device))
            statistics.add(features)
            progress.advance()
    fitted = codec.fit(statistics.levels)
    if note := describe_lost_channels(fitted, features):
        _log.warning(note)
    return fitted


def fitted_rows(images: int) -> NDArray[np.int64]:
    """Which of so many images a codec learns from."""
    return np.linspace(0, images - 1, min(FIT_IMAGES, images)).round().astype(np.int64)

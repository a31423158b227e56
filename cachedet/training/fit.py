"""Whether a config, its stores and what is installed fit together, before anything is written."""

from __future__ import annotations

import numpy as np

from cachedet.config import TrainConfig
from cachedet.detector_config import trains_masks
from cachedet.errors import CheckpointError, ConfigError
from cachedet.store.manifest import Manifest
from cachedet.store.reader import FeatureStore
from cachedet.training.tensorboard_log import require_tensorboard


def require_fit(config: TrainConfig, store: FeatureStore, validation: FeatureStore | None) -> None:
    """Refuse what would be found out after hours, or never.

    Raises:
        CheckpointError: features or classes of the two stores differ.
        ConfigError: validation pictures without boxes, a metric that nobody computes, masks that
            are not there, or TensorBoard that is not installed.
    """
    if config.tensorboard:
        require_tensorboard()
    if validation is not None:
        _require_same_features(store.manifest, validation.manifest)
        if not np.any(~validation.truth.crowd):
            raise ConfigError(
                f"the validation store {validation.location} holds no boxes (crowds aside), so "
                "that AP is undefined; validate on pictures with boxes, or leave --val out"
            )
    stopping = config.early_stopping
    if stopping is not None and stopping.metric != "loss" and validation is None:
        raise ConfigError(
            f"early_stopping on {stopping.metric} needs a validation store: give --val, or set "
            "early_stopping.metric: loss"
        )
    _require_masks(config, store)


def _require_same_features(train: Manifest, validation: Manifest) -> None:
    """Validation features must come from the same backbone and classes. Raises CheckpointError."""
    field = train.incompatible_field(validation)
    if field is not None:
        raise CheckpointError(
            f"the validation store differs in {field}: expected {getattr(train, field)}, got "
            f"{getattr(validation, field)}; extract both stores with the same options"
        )


def _require_masks(config: TrainConfig, store: FeatureStore) -> None:
    if trains_masks(config.detector) and store.truth.masks is None:
        raise ConfigError(
            "detector.mask_head needs masks, the store's annotations have none; extract from an "
            "annotation file with `segmentation`, or remove detector.mask_head"
        )

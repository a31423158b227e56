"""What `estimate` predicted, kept beside the store, and what came of it.

Light: `extract` and `train-heads` read it, neither needs the other's libraries for it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cachedet.config.run import TrainConfig
from cachedet.loading.sampling import resolve_views
from cachedet.store.files.durable import encode_json, write_durably
from cachedet.store.format.manifest import Manifest
from cachedet.version import __version__

SUFFIX = ".estimate.json"
# What decides how long a step takes and what it holds.
_SCHEDULE = ("batch_size", "accumulate", "optimizer", "clip_norm", "ema_decay")
_CONFIG = (
    "detector", "augment", "sampling", "residency", "device", "compile", "precision", "trainable",
)  # fmt: skip

PredictedVsActual = dict[str, dict[str, float]]
"""By what it is about: what was predicted and what it was, in bytes or seconds."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Of one extraction and one training.

    Attributes:
        store: what the store holds, see `describe_store`.
        extraction: how it is made: device and workers.
        training: what is trained, see `describe_training`.
        nbytes: of the shards.
        extract_seconds: of extraction alone, without the scan of the images.
        seconds_per_epoch: of the steps; None where it could not be tried.
        peak_memory: bytes of the training process, on an accelerator of its tensors.
    """

    store: dict[str, Any]
    extraction: dict[str, Any]
    training: dict[str, Any]
    nbytes: float
    extract_seconds: float
    seconds_per_epoch: float | None
    peak_memory: float | None
    version: str = __version__

    def write(self, store: Path) -> Path:
        """Beside the store that is to be; returns where. Raises OSError."""
        path = prediction_path(store)
        write_durably(path, encode_json(asdict(self)))
        return path

    @classmethod
    def find(cls, store: Path | str) -> Prediction | None:
        """Of a store in a local folder; None where there is none that can be read."""
        if "://" in str(store):
            return None
        try:
            values = json.loads(prediction_path(Path(store)).read_text(encoding="utf-8"))
            return cls(**values)
        except (OSError, ValueError, TypeError):
            return None


def prediction_path(store: Path) -> Path:
    """``train.zarr`` -> ``train.zarr.estimate.json``: beside it, as nothing foreign lies in one."""
    return store.with_name(store.name + SUFFIX)


def describe_store(manifest: Manifest, *, images: int) -> dict[str, Any]:
    """What the figures of a prediction depend on; `images` of the annotation file."""
    return {
        "backbone": manifest.backbone,
        "weights_digest": manifest.weights_digest,
        "levels": list(manifest.spec.names),
        "image_size": manifest.image_size,
        "views": list(manifest.views),
        "codec": manifest.codec,
        "block_size": manifest.block_size,
        "batch_size": manifest.batch_size,
        "images": images,
        "classes": list(manifest.categories.names),
    }


def describe_training(config: TrainConfig, *, views: tuple[str, ...]) -> dict[str, Any]:
    """The same of a training on a store of these views. Raises ConfigError on views it lacks."""
    values = config.model_dump(mode="json")
    return {
        **{key: values[key] for key in _CONFIG},
        "schedule": {key: values["schedule"][key] for key in _SCHEDULE},
        "views": resolve_views(config.views, held=views, where="the store"),
    }


def outcome_of_extraction(
    store: Path,
    manifest: Manifest,
    *,
    images: int,
    extraction: dict[str, Any],
    nbytes: int,
    seconds: float,
) -> PredictedVsActual:
    """Predicted and actual; empty where there is no prediction for these options.

    Args:
        store: where it lies.
        manifest: of it.
        images: in it.
        extraction: device and workers.
        nbytes: written, all of the store.
        seconds: it took.
    """
    found = Prediction.find(store)
    if found is None or not _is_of(found, manifest, images) or found.extraction != extraction:
        return {}
    return {
        "bytes": {"predicted": found.nbytes, "actual": nbytes},
        "extraction seconds": {"predicted": found.extract_seconds, "actual": seconds},
    }


def outcome_of_training(
    store: Path | str,
    manifest: Manifest,
    config: TrainConfig,
    *,
    images: int,
    seconds_per_epoch: float,
    peak_memory: int,
) -> PredictedVsActual:
    """The same of a training; `seconds_per_epoch` of its steps, without validations and saving."""
    found = Prediction.find(store)
    if found is None or not _is_of(found, manifest, images):
        return {}
    if found.training != describe_training(config, views=manifest.views):
        return {}
    pairs = {
        "seconds per epoch": (found.seconds_per_epoch, seconds_per_epoch),
        "peak memory": (found.peak_memory, float(peak_memory)),
    }
    return {
        name: {"predicted": predicted, "actual": actual}
        for name, (predicted, actual) in pairs.items()
        if predicted is not None and actual > 0
    }


def _is_of(prediction: Prediction, manifest: Manifest, images: int) -> bool:
    """Whether the store is the one that was predicted, whose skipped images were not known."""
    every = images + len(manifest.skipped)
    return prediction.store == describe_store(manifest, images=every)

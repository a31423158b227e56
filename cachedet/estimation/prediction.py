"""What `estimate` predicted, kept beside the store, and what came of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachedet.config.run import ExtractConfig, TrainConfig
from cachedet.device import choose_device
from cachedet.loading.sampling import resolve_views
from cachedet.store.files.durable import encode_json, write_durably
from cachedet.store.files.locations import is_url
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.manifest import Manifest, load_manifest
from cachedet.version import __version__

if TYPE_CHECKING:  # neither of the two commands needs the other's libraries for it
    from cachedet.extract import ExtractReport
    from cachedet.train import TrainReport

SUFFIX = ".estimate.json"
# What decides how long a step takes and what it holds.
_SCHEDULE = ("batch_size", "accumulate", "optimizer", "clip_norm", "ema_decay")
_CONFIG = (
    "detector", "augment", "sampling", "residency", "device", "compile", "precision", "trainable",
    "freeze_at", "stages",
)  # fmt: skip

_MANIFEST = ("backbone", "weights_digest", "image_size", "codec", "block_size", "batch_size")

PredictedVsActual = dict[str, dict[str, float]]
"""Name of a figure -> "predicted" and "actual", in bytes or seconds."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one extraction and one training will cost."""

    store: dict[str, Any]  # see `describe_store`
    extraction: dict[str, Any]  # see `describe_extraction`
    training: dict[str, Any]  # see `describe_training`
    nbytes: float  # of the shards
    extract_seconds: float  # of extraction alone, without the scan of the images
    seconds_per_epoch: float | None  # of the steps; None where it could not be tried
    peak_memory: float | None  # bytes of the training process, on an accelerator of its tensors
    version: str = __version__

    def write(self, store: Path) -> Path:
        """Beside the store that is to be; returns where. Raises OSError."""
        path = prediction_path(store)
        write_durably(path, encode_json(asdict(self)))
        return path

    @classmethod
    def find(cls, store: Path | str) -> Prediction | None:
        """The one beside a local store; None where there is none that can be read."""
        if is_url(store):
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
        **{name: getattr(manifest, name) for name in _MANIFEST},
        "levels": list(manifest.spec.names),
        "views": list(manifest.views),
        "images": images,
        "classes": list(manifest.categories.names),
    }


def describe_training(config: TrainConfig, *, views: tuple[str, ...]) -> dict[str, Any]:
    """What a step's cost depends on, for a store of these views.

    Raises ConfigError on views that the store lacks.
    """
    values = config.model_dump(mode="json")
    return {
        **{key: values[key] for key in _CONFIG},
        "schedule": {key: values["schedule"][key] for key in _SCHEDULE},
        "views": resolve_views(config.views, held=views, where="the store"),
    }


def describe_extraction(config: ExtractConfig) -> dict[str, Any]:
    """What its speed depends on beside what it writes."""
    return {
        "device": str(choose_device(config.device)),
        "workers": config.workers,
        "compile": config.compile,
    }


def compare_extraction(report: ExtractReport, config: ExtractConfig) -> PredictedVsActual:
    """Only of a store that the call wrote from its first block to its last.

    Empty where nothing was predicted for these options.
    """
    prediction = _find(config.store, report.images)
    if prediction is None or report.blocks_written < report.blocks_total:
        return {}
    if config.engine.kind != "local" or prediction.extraction != describe_extraction(config):
        return {}
    return {
        "bytes": {"predicted": prediction.nbytes, "actual": report.nbytes_written},
        "extraction seconds": {"predicted": prediction.extract_seconds, "actual": report.seconds},
    }


def compare_training(
    report: TrainReport, config: TrainConfig, *, store: Path | str
) -> PredictedVsActual:
    """Seconds of the steps alone, without validations and saving, and memory.

    Empty where nothing was predicted for this training of one process on `store`.
    """
    prediction = _find(store, report.images)
    if prediction is None:
        return {}
    config = config.model_copy(update={"views": report.views})
    held = tuple(prediction.store["views"])
    if prediction.training != describe_training(config, views=held):
        return {}
    pairs = {
        "seconds per epoch": (prediction.seconds_per_epoch, report.step_seconds_per_epoch),
        "peak memory": (prediction.peak_memory, float(report.peak_memory)),
    }
    return {
        name: {"predicted": predicted, "actual": actual}
        for name, (predicted, actual) in pairs.items()
        if predicted is not None and actual > 0
    }


def _find(store: Path | str, images: int) -> Prediction | None:
    """The one made for this store; it did not know which images would be skipped."""
    prediction = Prediction.find(store)
    if prediction is None:
        return None
    manifest = load_manifest(LocalFiles(Path(store)))
    every_image = images + len(manifest.skipped)
    is_of_store = prediction.store == describe_store(manifest, images=every_image)
    return prediction if is_of_store else None

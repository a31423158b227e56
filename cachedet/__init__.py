"""Train strong object detectors on cached features of a frozen backbone.

The names below are all that is public; docs/python.md shows them at work. Importing this package
imports none of them: each is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cachedet.version import __version__

if TYPE_CHECKING:
    from cachedet.backbone.custom import wrap_backbone
    from cachedet.check import check
    from cachedet.config.presets import load_config
    from cachedet.config.run import EvalConfig, ExtractConfig, TrainConfig
    from cachedet.convert import convert
    from cachedet.detector.build import build_detector
    from cachedet.detector.protocol import Detector
    from cachedet.distributed.collective import count_over_ranks
    from cachedet.errors import CachedetError
    from cachedet.evaluate import evaluate
    from cachedet.export import export
    from cachedet.extract import extract
    from cachedet.loading.dataset import FeatureDataset, collate
    from cachedet.loading.loader import make_loader
    from cachedet.predict import predict
    from cachedet.progress import show_progress
    from cachedet.relabel import relabel
    from cachedet.store.reader import FeatureStore, open_store
    from cachedet.structures import Batch, Detections, FeatureSpec, LevelSpec, Targets
    from cachedet.train import train

__all__ = [
    "Batch",
    "CachedetError",
    "Detections",
    "Detector",
    "EvalConfig",
    "ExtractConfig",
    "FeatureDataset",
    "FeatureSpec",
    "FeatureStore",
    "LevelSpec",
    "Targets",
    "TrainConfig",
    "__version__",
    "build_detector",
    "check",
    "collate",
    "convert",
    "count_over_ranks",
    "evaluate",
    "export",
    "extract",
    "load_config",
    "make_loader",
    "open_store",
    "predict",
    "relabel",
    "show_progress",
    "train",
    "wrap_backbone",
]

_HOMES = {
    "Batch": "structures",
    "CachedetError": "errors",
    "Detections": "structures",
    "Detector": "detector.protocol",
    "EvalConfig": "config.run",
    "ExtractConfig": "config.run",
    "FeatureDataset": "loading.dataset",
    "FeatureSpec": "structures",
    "FeatureStore": "store.reader",
    "LevelSpec": "structures",
    "Targets": "structures",
    "TrainConfig": "config.run",
    "build_detector": "detector.build",
    "check": "check",
    "collate": "loading.dataset",
    "convert": "convert",
    "count_over_ranks": "distributed.collective",
    "evaluate": "evaluate",
    "export": "export",
    "extract": "extract",
    "load_config": "config.presets",
    "make_loader": "loading.loader",
    "open_store": "store.reader",
    "predict": "predict",
    "relabel": "relabel",
    "show_progress": "progress",
    "train": "train",
    "wrap_backbone": "backbone.custom",
}


class _Library(ModuleType):
    """The package, in which `train` is the function also once its module is loaded."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOMES.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Library


def __getattr__(name: str) -> Any:
    """Load a public name. Raises AttributeError with the nearest ones."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"cachedet.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    from cachedet.errors import nearest_names

    raise AttributeError(
        f"module 'cachedet' has no attribute {name!r}{nearest_names(name, __all__)}"
    )


def __dir__() -> list[str]:
    return sorted(__all__)

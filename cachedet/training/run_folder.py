"""The run folder: where each file of a run lies, and training.json, what the run learns from."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cachedet.errors import CheckpointError
from cachedet.store.files.durable import encode_json, write_durably
from cachedet.store.files.locations import shown
from cachedet.store.reader import FeatureStore
from cachedet.structures import Annotations, CategoryMap
from cachedet.text import printable


class RunFolder:
    """Where each file of a run lies; tensorboard/ is there where it is asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.training = root / "training.json"  # see TrainingData
        self.metrics = root / "metrics.csv"
        self.results = root / "results.json"
        self.detections = root / "detections.json"
        self.best = root / "weights" / "best.pt"
        self.last = root / "weights" / "last.pt"
        self.previous = root / "weights" / "previous.pt"  # for when `last` is damaged
        self.tensorboard = root / "tensorboard"
        self.plots = root / "plots"

    @classmethod
    def create(cls, root: Path) -> RunFolder:
        """Make a new run folder. Raises CheckpointError where one exists already."""
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise CheckpointError(
                f"{root} exists already and is not empty; choose another --run, "
                "or continue it with --resume"
            )
        folder = cls(root)
        folder.best.parent.mkdir(parents=True, exist_ok=True)
        folder.plots.mkdir(exist_ok=True)
        return folder

    @classmethod
    def open(cls, root: Path) -> RunFolder:
        """Open a run that was started before. Raises CheckpointError where there is none."""
        folder = cls(root)
        if not folder.config.is_file():
            raise CheckpointError(
                f"{root} is not a run folder: it has no config.yaml; "
                "expected a folder that `cachedet train-heads --run` made"
            )
        return folder

    def weights(self, which: str) -> Path:
        """Path of the "best" or "last" checkpoint."""
        return {"best": self.best, "last": self.last}[which]

    def log(self, line: str) -> None:
        """Append one line with the wall-clock time to log.txt."""
        with (self.root / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable(line)}\n")


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a run learns from: a store in numbers."""

    store: str  # where it lay, without credentials
    fingerprint: str
    images: int
    categories: CategoryMap
    boxes: dict[int, int]  # category id -> boxes to learn from; crowds are none

    @classmethod
    def of(cls, store: FeatureStore) -> TrainingData:
        return cls(
            store=str(store.location),
            fingerprint=store.manifest.fingerprint(),
            images=len(store),
            categories=store.annotations.categories,
            boxes=count_annotations(store.annotations),
        )

    @classmethod
    def read(cls, folder: RunFolder) -> TrainingData | None:
        """None: the file is not there. Raises CheckpointError on another content."""
        if not folder.training.is_file():
            return None
        try:
            values = json.loads(folder.training.read_text(encoding="utf-8"))
            classes = values["classes"]
            return cls(
                store=shown(str(values["store"])),
                fingerprint=str(values["fingerprint"]),
                images=int(values["images"]),
                categories=CategoryMap(
                    ids=tuple(int(entry["id"]) for entry in classes),
                    names=tuple(str(entry["name"]) for entry in classes),
                ),
                boxes={int(entry["id"]): int(entry["boxes"]) for entry in classes},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder.training} is damaged ({error!r}): expected store, fingerprint, images "
                "and classes as `train-heads` writes them; remove the file, and name the training "
                "data with --training"
            ) from error

    def write(self, folder: RunFolder) -> None:
        """Write it into the run folder; a run that goes on writes the same content again."""
        write_durably(folder.training, encode_json(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        classes = zip(self.categories.ids, self.categories.names, strict=True)
        return {
            "store": self.store,
            "fingerprint": self.fingerprint,
            "images": self.images,
            "classes": [
                {"id": category_id, "name": name, "boxes": self.boxes[category_id]}
                for category_id, name in classes
            ],
        }


def count_annotations(training: Annotations) -> dict[int, int]:
    """Category id -> boxes to learn from; crowds are none."""
    counts = np.bincount(training.labels[~training.crowd], minlength=len(training.categories))
    return dict(zip(training.categories.ids, counts.tolist(), strict=True))

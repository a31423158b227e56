"""The run folder: where each file of a run lives."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cachedet.errors import CheckpointError


@dataclass(frozen=True)
class RunFolder:
    """config.yaml, training.json, metrics.csv, results.json, weights/, plots/ and log.txt.

    weights/ holds best.pt, last.pt and previous.pt; tensorboard/ is there where it is asked for.
    """

    root: Path

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

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def training(self) -> Path:
        """What the run learns from: the store, its pictures, and how many boxes of each class."""
        return self.root / "training.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.csv"

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @property
    def detections(self) -> Path:
        return self.root / "detections.json"

    @property
    def best(self) -> Path:
        return self.root / "weights" / "best.pt"

    @property
    def last(self) -> Path:
        return self.root / "weights" / "last.pt"

    @property
    def previous(self) -> Path:
        """The state before `last`, for when that one is damaged."""
        return self.root / "weights" / "previous.pt"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def plots(self) -> Path:
        return self.root / "plots"

    def weights(self, which: str) -> Path:
        """Path of the "best" or "last" checkpoint."""
        return {"best": self.best, "last": self.last}[which]

    def log(self, line: str) -> None:
        """Append one line with the wall-clock time to log.txt."""
        with (self.root / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

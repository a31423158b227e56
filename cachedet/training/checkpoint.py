"""Checkpoints: everything needed to resume a run, score it, or predict with it.

Loads with `weights_only=True`, so a checkpoint cannot run code. Written by temp + fsync + rename.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cachedet.config import TrainConfig, make_train_config
from cachedet.errors import CheckpointError
from cachedet.store.durable import write_durably
from cachedet.store.manifest import Manifest
from cachedet.structures import CategoryMap
from cachedet.version import __version__

_FORMAT = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The state of a run after `step` steps."""

    step: int
    epoch: int  # the epoch the next step belongs to
    batch: int  # the batch of that epoch the next step takes
    best_ap: float  # -1 before the first validation
    heads: dict[str, Any]
    optimizer: dict[str, Any]
    torch_rng: torch.Tensor
    config: TrainConfig
    manifest: Manifest  # of the store it was trained on: features, backbone, categories

    @property
    def categories(self) -> CategoryMap:
        return self.manifest.categories


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically and durably; the previous file stays whole until the new one is."""
    buffer = io.BytesIO()
    torch.save(
        {
            "format": _FORMAT,
            "cachedet": __version__,
            "torch": str(torch.__version__),
            "step": checkpoint.step,
            "epoch": checkpoint.epoch,
            "batch": checkpoint.batch,
            "best_ap": checkpoint.best_ap,
            "heads": checkpoint.heads,
            "optimizer": checkpoint.optimizer,
            "torch_rng": checkpoint.torch_rng,
            "config": checkpoint.config.model_dump_json(),
            "manifest": json.dumps(checkpoint.manifest.to_json()),
        },
        buffer,
    )
    write_durably(path, buffer.getvalue())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises CheckpointError: missing, not a checkpoint, or a newer format."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; expected the run folder of `train-heads`")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each kind of damage
        raise CheckpointError(f"{path} is damaged or not a checkpoint of cachedet") from error
    if not isinstance(values, dict) or "format" not in values:
        raise CheckpointError(f"{path} is not a checkpoint of cachedet (it has no format number)")
    if values["format"] > _FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {values['format']}, this cachedet {__version__} reads "
            f"up to {_FORMAT}; upgrade to cachedet {values.get('cachedet')} or newer"
        )
    return Checkpoint(
        step=values["step"],
        epoch=values["epoch"],
        batch=values["batch"],
        best_ap=values["best_ap"],
        heads=values["heads"],
        optimizer=values["optimizer"],
        torch_rng=values["torch_rng"],
        config=make_train_config(json.loads(values["config"]), where=str(path)),
        manifest=Manifest.from_json(json.loads(values["manifest"]), where=str(path)),
    )

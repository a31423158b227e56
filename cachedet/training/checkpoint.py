"""Checkpoints: everything needed to resume a run, score it, or predict with it.

Loads with `weights_only=True`, so a checkpoint cannot run code. Written by temp + fsync + rename;
of the states of a run the last two are kept.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cachedet.config.run import TrainConfig, make_train_config
from cachedet.errors import CheckpointError, DamagedCheckpointError
from cachedet.store.files.durable import sync_directory, temporary_path, write_durably, write_synced
from cachedet.store.format.manifest import Manifest
from cachedet.structures import CategoryMap
from cachedet.training.run_folder import cannot_write
from cachedet.version import __version__

_FORMAT = 2
_TYPES: dict[str, type | tuple[type, ...]] = {
    "step": int, "epoch": int, "batch": int, "best_ap": float, "seconds": float, "heads": dict,
    "average": (dict, type(None)), "optimizer": dict, "scaler": (dict, type(None)),
    "stopping": (dict, type(None)), "epoch_statistics": dict, "torch_rng": Tensor,
    "config": str, "manifest": str,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The state of a run after `step` steps."""

    step: int
    epoch: int  # the epoch the next step belongs to
    batch: int  # the batch of that epoch the next step takes; one past its last: not validated yet
    best_ap: float  # -1 before the first validation
    seconds: float  # of the steps, waiting for their batches included
    heads: dict[str, Any]  # the weights that training goes on with
    average: dict[str, Any] | None = None  # of the weights, where there is a moving average
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None = None  # of fp16
    stopping: dict[str, Any] | None = None  # of early stopping
    epoch_statistics: dict[str, Any] = field(default_factory=dict)  # of the epoch so far
    torch_rng: torch.Tensor
    config: TrainConfig
    manifest: Manifest  # of the store it was trained on: features, backbone, categories

    @property
    def categories(self) -> CategoryMap:
        return self.manifest.categories

    @property
    def scored_heads(self) -> dict[str, Any]:
        """The weights to score and predict with: the moving average where there is one.

        Raises CheckpointError where a backbone was trained with them.
        """
        return _of_heads(self.heads if self.average is None else self.average)


def load_weights(detector: nn.Module, weights: Mapping[str, Any]) -> None:
    """Give a detector the weights of a checkpoint. Raises CheckpointError where they do not fit."""
    try:
        detector.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise CheckpointError(
            f"the weights of the checkpoint do not fit {type(detector).__name__}: "
            f"{' '.join(lines[:3])[:300]}; give the detector that was trained, made with the same "
            "arguments"
        ) from error


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically and durably; the previous file stays whole until the new one is.

    Raises CheckpointError where it cannot be written.
    """
    try:
        write_durably(path, _encode(checkpoint))
    except OSError as error:
        raise cannot_write(path, error) from error


def save_rotating(path: Path, previous: Path, checkpoint: Checkpoint) -> None:
    """Write to `path`; what was there becomes `previous`. One of the two is whole at any time.

    `path` itself is there at any time once it was, but on file systems without hard links.

    Raises CheckpointError where it cannot be written.
    """
    temporary = temporary_path(path)
    try:
        write_synced(temporary, [_encode(checkpoint)])
        if path.exists():
            _keep_as(path, previous)
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        DamagedCheckpointError: the bytes are not those of a whole checkpoint.
        CheckpointError: no such file, something else than a checkpoint, or another format.
    """
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}; expected the run folder of `train-heads`; "
            "one that was stopped before its first validation has only last.pt: --resume it"
        )
    values = _read(path)
    if not isinstance(values, dict) or "format" not in values:
        raise CheckpointError(f"{path} is not a checkpoint of cachedet (it has no format number)")
    number = values["format"]
    if not isinstance(number, int) or number != _FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {number}, this cachedet {__version__} reads "
            f"format {_FORMAT} only; use cachedet {values.get('cachedet')}, which wrote it, or "
            "train again"
        )
    for name, kind in _TYPES.items():
        if not isinstance(values.get(name, _TYPES), kind):
            raise CheckpointError(
                f"{path} is not a checkpoint of cachedet: its {name} is missing or of a wrong type"
            )
    fields = {name: values[name] for name in _TYPES if name not in ("config", "manifest")}
    return Checkpoint(
        **fields,
        config=make_train_config(json.loads(values["config"]), where=str(path)),
        manifest=Manifest.from_json(json.loads(values["manifest"]), where=str(path)),
    )


def _of_heads(weights: dict[str, Any]) -> dict[str, Any]:
    """The weights without the prefix that an `EndToEndDetector` gives them."""
    if any(name.startswith("backbone.") for name in weights):
        raise CheckpointError(
            "these heads were trained together with their backbone (a cell of `cachedet compare`, "
            "mode tuned or scratch), so they do not fit cached features; `cachedet report` shows "
            "what the cell found"
        )
    if weights and all(name.startswith("heads.") for name in weights):
        return {name.removeprefix("heads."): value for name, value in weights.items()}
    return weights


def _keep_as(path: Path, previous: Path) -> None:
    """Give the file its second name before `path` is replaced, or move it where links fail."""
    link = temporary_path(previous)
    try:
        os.link(path, link)
    except OSError:
        os.replace(path, previous)
        return
    os.replace(link, previous)
    link.unlink(missing_ok=True)  # renaming onto the same file does nothing


def _encode(checkpoint: Checkpoint) -> bytes:
    buffer = io.BytesIO()
    fields = {name: getattr(checkpoint, name) for name in _TYPES}
    torch.save(
        {
            **fields,
            "format": _FORMAT,
            "cachedet": __version__,
            "torch": str(torch.__version__),
            "config": checkpoint.config.model_dump_json(),
            "manifest": json.dumps(checkpoint.manifest.to_json()),
        },
        buffer,
    )
    return buffer.getvalue()


def _read(path: Path) -> Any:
    """Raises DamagedCheckpointError. torch does not compare the checksums of what it reads."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            raise ValueError(f"the checksum of {bad} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each kind of damage
        raise DamagedCheckpointError(
            f"{path} is damaged or not a checkpoint of cachedet"
        ) from error

"""Checkpoints: everything needed to resume a run, score it, or predict with it.

Loads with `weights_only=True`, so a checkpoint cannot run code. Written by temp + fsync + rename;
of the states of a run the last two are kept.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import reprlib
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cachedet.config.run import TrainConfig, make_train_config
from cachedet.errors import CheckpointError, DamagedCheckpointError, StoreError
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
    path: Path | None = None  # it was read from

    @property
    def name(self) -> str:
        """For messages."""
        return "the checkpoint" if self.path is None else str(self.path)

    @property
    def categories(self) -> CategoryMap:
        return self.manifest.categories

    @property
    def scored_heads(self) -> dict[str, Any]:
        """The weights to score and predict with: the moving average where there is one.

        Raises CheckpointError where a backbone was trained with them.
        """
        weights = self.heads if self.average is None else self.average
        return weights if self.config.freeze_at is not None else _of_heads(weights)


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
        CheckpointError: no such file, one that cannot be read now, something else than a
            checkpoint, or another format.
    """
    if not is_there(path):
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
        value = values.get(name, _TYPES)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _is_none(path, f"its {name} is missing or of a wrong type")
    fields = {name: values[name] for name in _TYPES if name not in ("config", "manifest")}
    _require_sane(path, fields)
    return Checkpoint(
        **fields,
        config=make_train_config(_object_in(path, values, "config"), where=str(path)),
        manifest=_manifest_in(path, values),
        path=path,
    )


def is_there(path: Path) -> bool:
    """Whether there is a file. Raises CheckpointError where the system does not say."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _cannot_read(path, error) from error


def _require_sane(path: Path, fields: Mapping[str, Any]) -> None:
    """Raises CheckpointError on a position, figures or weights that no run can have."""
    for name in ("step", "epoch", "batch", "seconds"):
        if not 0 <= fields[name] < float("inf"):
            raise _is_none(path, f"its {name} is {fields[name]}, expected 0 or more")
    if not -1 <= fields["best_ap"] <= 1:
        raise _is_none(path, f"its best_ap is {fields['best_ap']}, expected -1 to 1")
    for name, value in {**fields["heads"], **(fields["average"] or {})}.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise _is_none(path, f"its heads hold {reprlib.repr(name)} that is no tensor")


def _object_in(path: Path, values: Mapping[str, Any], name: str) -> dict[str, Any]:
    try:
        value = json.loads(values[name])
    except (ValueError, RecursionError) as error:
        raise _is_none(path, f"its {name} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise _is_none(path, f"its {name} holds no keys, but a {type(value).__name__}")
    return value


def _manifest_in(path: Path, values: Mapping[str, Any]) -> Manifest:
    try:
        return Manifest.from_json(_object_in(path, values, "manifest"), where=f"that of {path}")
    except StoreError as error:
        raise _is_none(path, f"its manifest cannot be used: {error}") from error


def _is_none(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a checkpoint of cachedet: {reason}; expected a file that `train-heads` "
        "wrote and nothing else changed: take another one of the run, or train again"
    )


def _cannot_read(path: Path, error: BaseException) -> CheckpointError:
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or "no memory"
    return CheckpointError(
        f"cannot read {path}: {reason}; that is no damage, and nothing was changed. Repair the "
        "cause (permissions, the disk or network, memory) and run the same command again"
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
    """Raises CheckpointError. torch does not compare the checksums of what it reads."""
    try:
        content = io.BytesIO(path.read_bytes())
    except (OSError, MemoryError) as error:
        raise _cannot_read(path, error) from error
    what = f"{path} is damaged or not a checkpoint of cachedet"
    bad: str | None = ""
    is_torch = False
    try:
        with zipfile.ZipFile(content) as archive:
            bad = archive.testzip()
            is_torch = any(name.endswith("/data.pkl") for name in archive.namelist())
        if bad is not None:
            raise ValueError(f"the checksum of {bad} is wrong")
        content.seek(0)
        return torch.load(content, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise _cannot_read(path, error) from error
    except pickle.UnpicklingError as error:  # of bytes whose checksum is right
        raise CheckpointError(f"{what}: it holds other things than weights and figures") from error
    except Exception as error:  # torch raises a different type for each kind of damage
        if "allocate memory" in str(error):
            raise _cannot_read(path, error) from error
        if bad is None and not is_torch:
            raise CheckpointError(f"{what}: it is a zip file of something else") from error
        raise DamagedCheckpointError(what) from error

"""Results of a comparison's cells, as their folders keep them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachedet.errors import InputError
from cachedet.evaluation.precision import to_json_values
from cachedet.live.mode_names import Mode, is_mode
from cachedet.store.files.durable import encode_json, write_durably

RESULT = "cell.json"  # in the folder of a cell


@dataclass(frozen=True, kw_only=True, order=True)
class CellKey:
    """One run of a comparison."""

    heads: str  # name of the config
    mode: Mode
    seed: int

    @property
    def folder(self) -> str:
        return f"{self.heads}-{self.mode}-{self.seed}"

    @staticmethod
    def heads_in(folder: str) -> str:
        """The name of the config in that of a folder."""
        return folder.rsplit("-", 2)[0]


@dataclass(frozen=True, kw_only=True)
class ClassFigure:
    """AP of one class, and how many boxes of it there were to learn from."""

    name: str
    boxes: int
    ap: float  # NaN where the scored images have none


@dataclass(frozen=True, kw_only=True)
class BinFigure:
    """AP of the classes of one bin of training boxes; see evaluation.strata."""

    name: str
    classes: int
    ap: float


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """A cell that was trained and scored, or why it was not."""

    key: CellKey
    error: str = ""  # why the cell failed; the figures then mean nothing
    device: str = ""
    steps: int = 0
    epochs: float = 0.0  # that the steps make up
    seconds: float = 0.0  # in training steps, waiting for images and features included
    processor_seconds: float = math.nan  # of training, with validations and saving
    extraction_seconds: float = 0.0  # NaN where not known; 0 in the modes that need no cache
    peak_memory: int = 0  # bytes of the process that trained (on an accelerator of its tensors)
    step_flops: int = 0  # of a training step, an image: everything the mode computes
    parameters: int = 0  # that are trained
    cache_nbytes: int = 0  # on the disk; 0 in the modes that need none
    ap: float = math.nan
    ap50: float = math.nan
    ap75: float = math.nan
    low: float = math.nan  # ends of the 95 % interval of AP over the scored images
    high: float = math.nan
    late_rise: float = math.nan  # of AP in the last quarter of the steps; NaN: scored once alone
    classes: tuple[ClassFigure, ...] = ()
    bins: tuple[BinFigure, ...] = ()

    @property
    def has_failed(self) -> bool:
        return bool(self.error)

    def to_json(self) -> dict[str, Any]:
        return to_json_values(self)

    @classmethod
    def read(cls, path: Path) -> CellResult:
        """Raises InputError where the file is not what `write` wrote."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {error}; remove it") from error
        if not isinstance(values, dict):
            raise InputError(f"{path} should hold an object, got {type(values).__name__}")
        try:
            values = _null_to_nan(values)
            key = CellKey(**values.pop("key"))
            if not is_mode(key.mode):
                raise ValueError(f"mode {key.mode!r}")
            classes = tuple(ClassFigure(**_null_to_nan(each)) for each in values.pop("classes"))
            bins = tuple(BinFigure(**_null_to_nan(each)) for each in values.pop("bins"))
            return cls(key=key, classes=classes, bins=bins, **values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is not the result of a cell ({error}); remove the file, and the cell is "
                "trained again"
            ) from error

    def write(self, path: Path) -> None:
        write_durably(path, encode_json(self.to_json()))


def _null_to_nan(values: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in values.items()}

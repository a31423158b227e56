"""What a user may ask a comparison for, from the words of the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast, get_args

from cachedet.backbone.trained import BatchNorm
from cachedet.errors import InputError, nearest_names
from cachedet.live.rigs import MODES, Mode

T = TypeVar("T")

_LARGEST_SEED = 2**63 - 1
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def parse_modes(text: str) -> tuple[Mode, ...]:
    """``cached,tuned``. Raises InputError on other names."""
    names = _split(text)
    for name in names:
        if name not in MODES:
            raise InputError(
                f"--modes: unknown mode {name!r}{nearest_names(name, MODES)}; "
                f"known: {', '.join(MODES)}"
            )
    return tuple(cast(Mode, name) for name in names)


def parse_seeds(text: str) -> tuple[int, ...]:
    """``0,1,2``. Raises InputError on anything else than whole numbers from 0 to 2**63 - 1."""
    names = _split(text)
    if not names or not all(name.isascii() and name.isdigit() for name in names):
        raise InputError(f"--seeds expects whole numbers from 0 such as 0,1,2, got {text!r}")
    large = [name for name in names if len(name) > 19 or int(name) > _LARGEST_SEED]
    if large:  # of thousands of digits Python makes no number
        raise InputError(
            f"--seeds expects numbers up to {_LARGEST_SEED} (2**63 - 1), got {large[0][:40]}; "
            "give smaller ones"
        )
    return tuple(int(name) for name in names)


def parse_seconds(text: str) -> float:
    """``10m``, ``90s``, ``1.5h`` or ``600``. Raises InputError on anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    seconds = float(found[1]) * _SECONDS[found[2] or "s"] if found else 0.0
    if seconds <= 0:
        raise InputError(f"--budget expects a time such as 10m, 90s or 1h, got {text!r}")
    return seconds


def parse_batch_norm(text: str) -> BatchNorm:
    """Raises InputError on an unknown word."""
    if text not in get_args(BatchNorm):
        raise InputError(f"--batch-norm expects frozen or trained, got {text!r}")
    return cast(BatchNorm, text)


def name_configs(paths: Sequence[Path], load: Callable[[Path], T]) -> dict[str, T]:
    """By the file's name, which every cell is called by. Raises InputError on equal names."""
    found: dict[str, T] = {}
    for path in paths:
        if path.stem in found:
            raise InputError(
                f"two configs are named {path.stem}: cells are called by the name of their file, "
                "so rename one"
            )
        found[path.stem] = load(path)
    return found


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]

"""What a sweep is asked to do, and the rules of its search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, cast, get_args

from cachedet.config.run import TrainConfig
from cachedet.device import choose_device, usable_cores
from cachedet.errors import InputError, nearest_names
from cachedet.evaluation.metrics import CocoScores
from cachedet.loading.memory import free_ram
from cachedet.sweeping.parameters import Parameter

SamplerName = Literal["tpe", "random"]
PrunerName = Literal["hyperband", "halving", "none"]
Direction = Literal["maximize", "minimize"]
SECONDS = "seconds"  # of training steps, as an objective
_FIGURES = tuple(field.name for field in fields(CocoScores) if field.type == "float")
_PROCESS_RAM = 1 << 30  # bytes that a process takes on a CPU, about


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A figure of the choosing part; with `seconds` the front of both is sought."""

    figure: str = "ap"  # a field of CocoScores
    seconds: bool = False

    @property
    def directions(self) -> tuple[Direction, ...]:
        return ("maximize", "minimize") if self.seconds else ("maximize",)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.figure, SECONDS) if self.seconds else (self.figure,)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How the search is made."""

    sampler: SamplerName
    pruner: PrunerName
    seed: int
    directions: tuple[Direction, ...]
    most_epochs: int  # of any trial
    parallel: int = 1


@dataclass(frozen=True, kw_only=True)
class Space:
    """Parameters by the name of their config; of several configs, which one is drawn first."""

    of_config: Mapping[str, Sequence[Parameter]]

    def name_of(self, config: str, parameter: Parameter) -> str:
        """What the study calls it."""
        return parameter.key if len(self.of_config) == 1 else f"{config}:{parameter.key}"

    def describe(self) -> dict[str, list[str]]:
        return {
            name: [parameter.describe() for parameter in parameters]
            for name, parameters in self.of_config.items()
        }


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What is searched, on which stores, for how long."""

    heads: Mapping[str, TrainConfig]  # configs by name; the first is the default
    train: str  # store
    val: str  # store
    out: Path
    trials: int | None = None  # in all calls together
    budget: float | None = None  # seconds of search instead, in all calls together
    params: Sequence[str] = ()  # as --param gives them; none: the shipped spaces
    fixed: Sequence[str] = ()  # keys that the shipped spaces leave out
    objective: Objective = Objective()
    parallel: int = 1
    holdout: float = 0.5  # share of the validation images
    seed: int = 0
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "halving"
    final_seeds: int = 3
    resamples: int = 1000


def figure_name(figure: str) -> str:
    """As people write it: AP50, ap small."""
    return figure.upper() if len(figure) <= 4 else figure.replace("_", " ")


def parse_objective(text: str) -> Objective:
    """``AP``, ``AP50`` or ``AP,seconds``. Raises InputError on anything else."""
    names = [name.strip().casefold() for name in text.split(",")]
    figure, others = names[0], names[1:]
    if figure not in _FIGURES or others not in ([], [SECONDS]):
        unknown = next((name for name in names if name not in (*_FIGURES, SECONDS)), text)
        raise InputError(
            f"--objective expects a figure, or one and seconds as in AP,seconds; got {text!r}"
            f"{nearest_names(unknown, _FIGURES)}; figures: {', '.join(_FIGURES)}"
        )
    return Objective(figure=figure, seconds=bool(others))


def parse_sampler(text: str) -> SamplerName:
    """Raises InputError on another name."""
    return cast(SamplerName, _require_known(text, get_args(SamplerName), option="--sampler"))


def parse_pruner(text: str | None, objective: Objective) -> PrunerName:
    """Halving unless another is named; with two objectives none.

    Raises InputError on another name, or where two objectives do not allow it.
    """
    if text is None:
        return "none" if objective.seconds else "halving"
    known = _require_known(text, get_args(PrunerName), option="--pruner")
    if objective.seconds and known != "none":
        raise InputError(
            f"--pruner {text} gives trials up by their AP, and --objective {objective.figure},"
            "seconds also seeks fast ones of a lower AP; leave one of them out"
        )
    return cast(PrunerName, known)


def parse_parallel(text: str, device: str) -> int:
    """A number of processes, or ``auto``: a core each on a CPU as far as RAM goes, else one.

    Raises InputError on anything else, ConfigError on a device that is not there.
    """
    if text != "auto":
        if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) <= 1024):
            raise InputError(
                f"--parallel expects a number of processes from 1 to 1024, or auto; got {text!r}"
            )
        return int(text)
    if choose_device(device).type != "cpu":
        return 1
    return max(1, min(usable_cores() or 1, free_ram() // _PROCESS_RAM))


def require_sensible(config: SweepConfig) -> None:
    """Refuse what can be known without opening anything. Raises InputError."""
    if (config.trials is None) == (config.budget is None):
        raise InputError("a sweep ends by --trials or by --budget; give one of the two")
    if not config.heads:
        raise InputError("a sweep needs a config")
    if config.trials is not None and config.trials < 1:
        raise InputError(f"--trials expects 1 or more, got {config.trials}")
    if not math.isfinite(config.holdout) or not 0 < config.holdout < 1:
        raise InputError(
            f"--holdout expects a share between 0 and 1, such as 0.5, got {config.holdout:g}"
        )


def _require_known(text: str, known: Sequence[str], *, option: str) -> str:
    if text not in known:
        raise InputError(
            f"{option} expects one of {', '.join(known)}, got {text!r}{nearest_names(text, known)}"
        )
    return text

"""How many steps a cell takes, and how much memory: kept in its folder, so that it can go on."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from cachedet.config.run import TrainConfig
from cachedet.errors import InputError
from cachedet.live.modes import TrainingMode
from cachedet.loading.loader import FeatureLoader, make_planner
from cachedet.loading.sampling import PlannedBatch, resolve_views
from cachedet.store.files.durable import encode_json, write_durably
from cachedet.store.reader import FeatureStore
from cachedet.structures import Batch
from cachedet.training.stopping import TimeBudget

_TRIAL_SHARE = 0.03  # of the budget, for the steps that tell how many fit into it
_LONGEST_TRIAL = 20.0  # seconds


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Decided once: a cell that goes on has the schedule it began with."""

    steps: int  # of a budget: about so many
    steps_per_epoch: int
    seconds: float | None  # budget of the steps; None: as many steps as there are in the epochs
    step_flops: int  # of an image

    def fit(self, config: TrainConfig) -> TrainConfig:
        """The config with the epochs that are planned."""
        if self.seconds is None:
            return config
        epochs = math.ceil(self.steps / self.steps_per_epoch)
        schedule = config.schedule.model_copy(update={"epochs": epochs})
        return config.model_copy(update={"schedule": schedule})

    @property
    def budget(self) -> TimeBudget | None:
        """Of the whole cell, however often it goes on; None without one."""
        return None if self.seconds is None else TimeBudget(seconds=self.seconds)

    def write(self, root: Path) -> None:
        write_durably(root / "steps.json", encode_json(vars(self)))

    @classmethod
    def read(cls, root: Path) -> StepPlan | None:
        """None where there is none. Raises InputError on a damaged one."""
        values = _read(root / "steps.json")
        return None if values is None else cls(**values)


def keep_peak_memory(root: Path, peak: int) -> int:
    """The most bytes of all stretches of a cell; `peak` is of the latest.

    Of a stretch that was killed before it ended nothing is known: the next takes steps like those.

    Raises InputError where what was kept is damaged.
    """
    before = _read(root / "memory.json") or {"peak": 0}
    most = max(int(before["peak"]), peak)
    write_durably(root / "memory.json", encode_json({"peak": most}))
    return most


def plan_steps(
    config: TrainConfig,
    store: FeatureStore,
    make: Callable[[], TrainingMode],
    *,
    seconds: float | None,
) -> StepPlan:
    """About as many steps as fit into `seconds` by a trial, else those of the config's epochs.

    Args:
        config: of the cell.
        store: of the training images.
        make: the rig of the cell, to be thrown away.
        seconds: to train; None: the config's epochs.
    """
    planner = make_planner(config, store)
    trial_seconds = 0.0 if seconds is None else min(_TRIAL_SHARE * seconds, _LONGEST_TRIAL)
    epoch = _first_epoch(planner, config, store)
    trial = try_steps(make, counted=epoch.extremes, seconds=trial_seconds)

    def steps_of(number: int) -> int:
        return math.ceil(len(planner.plan(number)) / config.schedule.accumulate)

    if seconds is None:
        steps = sum(steps_of(number) for number in range(config.schedule.epochs))
    else:
        steps = max(1, round(seconds / (trial.seconds_per_step * config.schedule.accumulate)))
    return StepPlan(
        steps=steps,
        steps_per_epoch=steps_of(0),
        seconds=seconds,
        step_flops=epoch.flops_of_mean(trial.step_flops),
    )


@dataclass(frozen=True, kw_only=True)
class _Epoch:
    """Padded pixels of the first epoch's images, and its batches of the least and the most."""

    mean_area: float
    extremes: list[NDArray[np.int64]]
    areas: list[int]  # of the extremes

    def flops_of_mean(self, flops: Sequence[int]) -> int:
        """Of an image: what convolutions compute grows with its pixels, what RoI heads do not."""
        return round(float(np.interp(self.mean_area, self.areas, flops)))


def _first_epoch(planner: FeatureLoader, config: TrainConfig, store: FeatureStore) -> _Epoch:
    views = tuple(resolve_views(config.views, held=store.manifest.views, where=store.location))

    def area_of(keys: NDArray[np.int64]) -> int:
        view, row = keys[0]
        return math.prod(store.bucket_of(int(row), views[int(view)]))

    plan = planner.plan(0)
    images = sum(len(keys) for keys in plan)
    by_area = {area_of(keys): keys for keys in plan}
    areas = sorted({min(by_area), max(by_area)})  # one where all images are of one size
    return _Epoch(
        mean_area=sum(area_of(keys) * len(keys) for keys in plan) / images,
        extremes=[by_area[area] for area in areas],
        areas=areas,
    )


def time_left(budget: float, *, spent: float) -> float:
    """Seconds to train in. Raises InputError where extraction alone took the budget."""
    if spent >= budget:
        raise InputError(
            f"--budget is {budget:.0f} s, and extracting the features took {spent:.0f} s of it: "
            "nothing is left to train in; give a longer one"
        )
    return budget - spent


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error}); remove the folder {path.parent}, and the cell is "
            "trained again"
        ) from error
    return values


_WARM_UP = 2  # steps: the first ones allocate, and choose kernels


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Of one mode and its heads.

    Attributes:
        step_flops: of a training step on each counted batch, an image: a multiplication and an
            addition count as two.
        seconds_per_step: 0 where it was not asked for.
    """

    step_flops: tuple[int, ...]
    seconds_per_step: float


def try_steps(
    make: Callable[[], TrainingMode], *, counted: Sequence[NDArray[np.int64]], seconds: float
) -> Trial:
    """Take steps for about so many seconds, after those that are counted; 0: only those.

    Args:
        make: a new rig, which is thrown away. Its optimiser steps take one batch each.
        counted: batches whose FLOPs are counted, as in a plan.
        seconds: of timed steps.
    """
    training_mode = make()
    flops = tuple(
        _count(training_mode, batch)
        for batch in training_mode.loader.read_ahead(map(PlannedBatch, counted))
    )
    if seconds <= 0:
        return Trial(step_flops=flops, seconds_per_step=0.0)
    with closing(training_mode.loader.epoch(0, until=sys.maxsize)) as batches:
        return Trial(
            step_flops=flops, seconds_per_step=_time_steps(training_mode, batches, seconds)
        )


def _time_steps(training_mode: TrainingMode, batches: Iterator[Batch], seconds: float) -> float:
    """Seconds a step, of at least three and so many seconds."""
    for batch in islice(batches, _WARM_UP):
        training_mode.trainer.take_step(batch)
    _wait_for(training_mode.trainer.device)
    started, taken = time.perf_counter(), 0
    while taken < 3 or time.perf_counter() - started < seconds:
        training_mode.trainer.take_step(next(batches))
        taken += 1
    _wait_for(training_mode.trainer.device)
    return (time.perf_counter() - started) / taken


def _count(training_mode: TrainingMode, batch: Batch) -> int:
    """FLOPs of a training step on the batch, an image."""
    with FlopCounterMode(display=False) as counter:
        training_mode.trainer.take_step(batch)
    flops: int = counter.get_total_flops()
    return flops // len(batch.targets)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

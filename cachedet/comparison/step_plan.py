"""Number and cost of a cell's steps: tried, and kept so that the cell can go on."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.config.run import TrainConfig
from cachedet.device import wait_for
from cachedet.errors import InputError
from cachedet.flops import flop_counter
from cachedet.live.modes import TrainingMode
from cachedet.loading.loader import FeatureLoader, make_planner
from cachedet.loading.sampling import PlannedBatch, resolve_views
from cachedet.store.files.durable import encode_json, write_durably
from cachedet.store.reader import FeatureStore
from cachedet.structures import Batch
from cachedet.training.loop import SessionReport
from cachedet.training.stopping import TimeBudget

_TRIAL_SHARE = 0.03  # of the budget, for the steps that tell how many fit into it
_LONGEST_TRIAL = 20.0  # seconds
_WARM_UP = 2  # steps: the first ones allocate, and choose kernels
_LEAST_STEPS = 3  # that are timed

Keys = NDArray[np.int64]
"""(n, 2) view index and row of each image of a batch."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Decided once: a cell that goes on has the schedule it began with."""

    steps: int  # of a budget: about so many
    steps_per_epoch: int
    seconds: float | None  # budget of the steps; None: as many steps as there are in the epochs
    step_flops: int  # an image

    def fit(self, config: TrainConfig) -> TrainConfig:
        """The config with the epochs that are planned."""
        if self.seconds is None:
            return config
        epochs = math.ceil(self.steps / self.steps_per_epoch)
        schedule = config.schedule.model_copy(update={"epochs": epochs})
        return config.model_copy(update={"schedule": schedule})

    @property
    def budget(self) -> TimeBudget | None:
        """Budget of the whole cell, however often it goes on; None without one."""
        return None if self.seconds is None else TimeBudget(seconds=self.seconds)

    def write(self, root: Path) -> None:
        write_durably(root / "steps.json", encode_json(vars(self)))

    @classmethod
    def read(cls, root: Path) -> StepPlan | None:
        """Read the plan; None where there is none. Raises InputError on a damaged one."""
        values = _read(root / "steps.json")
        return None if values is None else cls(**values)


def plan_steps(
    config: TrainConfig, store: FeatureStore, training_mode: TrainingMode, *, seconds: float | None
) -> StepPlan:
    """Plan about as many steps as a trial fits into `seconds`, else those of the config's epochs.

    The cell's `training_mode` is of no use afterwards: its steps change the weights.
    """
    planner = make_planner(config, store)
    mean_area, extremes = _areas_of_epoch(planner, config, store)
    flops, seconds_per_batch = try_steps(
        training_mode,
        counted=list(extremes.values()),
        seconds=0.0 if seconds is None else min(_TRIAL_SHARE * seconds, _LONGEST_TRIAL),
    )

    def steps_of(epoch: int) -> int:
        return math.ceil(len(planner.plan(epoch)) / config.schedule.accumulate)

    if seconds is None:
        steps = sum(steps_of(epoch) for epoch in range(config.schedule.epochs))
    else:
        steps = max(1, round(seconds / (seconds_per_batch * config.schedule.accumulate)))
    return StepPlan(
        steps=steps,
        steps_per_epoch=steps_of(0),
        seconds=seconds,
        # What convolutions compute grows with an image's pixels, what RoI heads do does not.
        step_flops=round(float(np.interp(mean_area, list(extremes), flops))),
    )


def time_left(budget: float, *, spent: float) -> float:
    """Seconds to train in. Raises InputError where extraction alone took the budget."""
    if spent >= budget:
        raise InputError(
            f"--budget is {budget:.0f} s, and extracting the features took {spent:.0f} s of it: "
            "nothing is left to train in; give a longer one"
        )
    return budget - spent


@dataclass(frozen=True, kw_only=True)
class CellCosts:
    """What the stretches of a cell took, in a file of its folder.

    Nothing is known of a stretch that was killed before it ended: the next takes steps like those.
    """

    peak_memory: int = 0  # bytes, the most of any stretch
    processor_seconds: float = 0.0
    steps: int = 0  # that were taken in them

    def seconds_of(self, steps: int) -> float:
        """Seconds of the processor for so many steps; NaN where no stretch is known."""
        return self.processor_seconds / self.steps * steps if self.steps else math.nan

    @classmethod
    def keep(cls, root: Path, session: SessionReport) -> CellCosts:
        """Add the latest stretch. Raises InputError where what was kept is damaged."""
        before = cls(**(_read(root / "costs.json") or {}))
        costs = cls(
            peak_memory=max(before.peak_memory, session.peak_memory),
            processor_seconds=before.processor_seconds + session.processor_seconds,
            steps=before.steps + len(session.losses),
        )
        write_durably(root / "costs.json", encode_json(vars(costs)))
        return costs


def try_steps(
    training_mode: TrainingMode, *, counted: Sequence[Keys], seconds: float
) -> tuple[list[int], float]:
    """Take steps of one batch each for about so many seconds, after those that are counted.

    Returns the FLOPs of a step on each counted batch, an image (a multiplication and an addition
    are two), and the seconds of a timed step; 0 where no seconds are given.
    """
    flops = []
    for batch in training_mode.loader.read_ahead(map(PlannedBatch, counted)):
        with flop_counter() as counter:
            training_mode.trainer.take_step(batch)
        flops.append(counter.get_total_flops() // len(batch.targets))
    if seconds <= 0:
        return flops, 0.0
    with closing(training_mode.loader.epoch(0, until=sys.maxsize)) as batches:
        return flops, _time_steps(training_mode, batches, seconds)


def _areas_of_epoch(
    planner: FeatureLoader, config: TrainConfig, store: FeatureStore
) -> tuple[float, dict[int, Keys]]:
    """Padded pixels of an image: mean of the first epoch, and batches of the least and the most."""
    views = tuple(resolve_views(config.views, held=store.manifest.views, where=store.location))

    def area_of(keys: Keys) -> int:
        view, row = keys[0]
        return math.prod(store.bucket_of(int(row), views[int(view)]))

    plan = planner.plan(0)
    by_area = {area_of(keys): keys for keys in plan}
    areas = sorted({min(by_area), max(by_area)})  # one where all images are of one size
    total = sum(area_of(keys) * len(keys) for keys in plan)
    return total / sum(len(keys) for keys in plan), {area: by_area[area] for area in areas}


def _time_steps(training_mode: TrainingMode, batches: Iterator[Batch], seconds: float) -> float:
    trainer = training_mode.trainer
    for batch in islice(batches, _WARM_UP):
        trainer.take_step(batch)
    wait_for(trainer.device)
    started, taken = time.perf_counter(), 0
    while taken < _LEAST_STEPS or time.perf_counter() - started < seconds:
        trainer.take_step(next(batches))
        taken += 1
    wait_for(trainer.device)
    return (time.perf_counter() - started) / taken


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

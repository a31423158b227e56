"""A few steps that are thrown away: what a step of a mode computes, and how long it takes here."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from cachedet.live.rigs import Rig
from cachedet.training.batch import Batch
from cachedet.training.sampling import Due

_WARM_UP = 2  # steps: the first ones allocate, and choose kernels


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Of one mode and its heads.

    Attributes:
        step_flops: of a training step on each counted batch, a picture: a multiplication and an
            addition count as two.
        seconds_per_step: 0 where it was not asked for.
    """

    step_flops: tuple[int, ...]
    seconds_per_step: float


def try_steps(
    make: Callable[[], Rig], *, counted: Sequence[NDArray[np.int64]], seconds: float
) -> Trial:
    """Take steps for about so many seconds, after those that are counted; 0: only those.

    Args:
        make: a new rig, which is thrown away. Its optimiser steps take one batch each.
        counted: batches whose FLOPs are counted, as in a plan.
        seconds: of timed steps.
    """
    rig = make()
    flops = tuple(_count(rig, batch) for batch in rig.loader.read_ahead(map(Due, counted)))
    if seconds <= 0:
        return Trial(step_flops=flops, seconds_per_step=0.0)
    with closing(rig.loader.batches(0, until=sys.maxsize)) as batches:
        return Trial(step_flops=flops, seconds_per_step=_time_steps(rig, batches, seconds))


def _time_steps(rig: Rig, batches: Iterator[Batch], seconds: float) -> float:
    """Seconds a step, of at least three and so many seconds."""
    for batch in islice(batches, _WARM_UP):
        rig.trainer.take_step(batch)
    _wait_for(rig.trainer.device)
    started, taken = time.perf_counter(), 0
    while taken < 3 or time.perf_counter() - started < seconds:
        rig.trainer.take_step(next(batches))
        taken += 1
    _wait_for(rig.trainer.device)
    return (time.perf_counter() - started) / taken


def _count(rig: Rig, batch: Batch) -> int:
    """FLOPs of a training step on the batch, a picture."""
    with FlopCounterMode(display=False) as counter:
        rig.trainer.take_step(batch)
    flops: int = counter.get_total_flops()
    return flops // len(batch.targets)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

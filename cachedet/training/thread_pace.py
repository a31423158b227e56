"""Whether fewer threads of torch would train faster here, as beside other programs; only advice.

Another number of threads rounds otherwise, so that the run keeps the one it was started with.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from cachedet.distributed.collective import world_size
from cachedet.loading.loader import FeatureLoader
from cachedet.progress import count_of
from cachedet.training.trainer import Trainer

LEAST_STEPS = 1000  # that are left, so that the trial costs a hundredth of them at most
_ROUNDS = 3  # of each number in turn: the load changes meanwhile
_FASTER = 1.25  # times, from which on it is worth a line


def advise_threads(trainer: Trainer, loader: FeatureLoader, *, max_steps: int | None = None) -> str:
    """One line where fewer threads are clearly faster for the run that begins here, else "".

    The trial is a copy's, on the first batch: neither weights nor random numbers move.
    """
    threads = torch.get_num_threads()
    total = trainer.learning_rate.total_steps
    left = min(total, total if max_steps is None else max_steps) - trainer.step
    if trainer.device.type != "cpu" or threads == 1 or world_size() > 1 or left < LEAST_STEPS:
        return ""
    tried = copy.deepcopy(trainer)
    batch = loader.read(loader.plan(trainer.epoch)[0])
    counts = sorted({1, threads // 2, threads})
    try:
        with torch.random.fork_rng(devices=[]):
            paces = measure_paces(lambda: tried.add_gradients(batch), counts)
    finally:
        torch.set_num_threads(threads)
    share = len(batch.targets) / trainer.step_images
    return describe_paces({count: pace * share for count, pace in paces.items()}, now=threads)


def measure_paces(
    work: Callable[[], object],
    counts: Sequence[int],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, float]:
    """Calls of `work` a second, by number of threads; the last number stays set."""
    seconds = dict.fromkeys(counts, 0.0)
    for number in range(1 + _ROUNDS):
        for count in counts:
            torch.set_num_threads(count)
            started = clock()
            work()
            if number > 0:  # the first round makes buffers and threads
                seconds[count] += clock() - started
    return {count: _ROUNDS / taken for count, taken in seconds.items()}


def describe_paces(paces: Mapping[int, float], *, now: int) -> str:
    """The number of threads to run with, where it is clearly faster than `now`; else ""."""
    best = max(paces, key=lambda count: paces[count])
    if paces[best] < _FASTER * paces[now]:
        return ""
    best_pace, pace = (f"{paces[count]:.2g}" for count in (best, now))
    fewer = f"{count_of(best, 'thread')}: {best_pace} steps/s, {count_of(now, 'thread')}: {pace}"
    return f"{fewer}; run with OMP_NUM_THREADS={best}"

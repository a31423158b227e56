"""Training steps of one mode in a process of their own, so that its peak memory is theirs alone.

This module is imported by that process: it must not import the backbone, which training on a cache
does without.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from cachedet.config.run import EvalConfig, TrainConfig
from cachedet.detector.protocol import run_detector
from cachedet.errors import CachedetError
from cachedet.estimation.sample import Keys
from cachedet.loading.loader import BatchLoader, make_run_loader
from cachedet.loading.memory import peak_memory
from cachedet.loading.sampling import PlannedBatch
from cachedet.store.reader import FeatureStore
from cachedet.structures import Batch
from cachedet.training.trainer import Trainer, make_trainer

Mode = Literal["cached", "live", "tuned"]
MODES: tuple[Mode, ...] = ("cached", "live", "tuned")

_CPU = torch.device("cpu")
_TOTAL_STEPS = 10_000  # of the schedule: a learning rate that stays small
_MOST_ROUNDS = 50
_LOOK_EVERY = 0.2  # seconds
_MOST_SECONDS = 600.0  # after which a process that says nothing is given up


@dataclass(frozen=True, kw_only=True, eq=False)
class StepJob:
    """What the process shall train on."""

    mode: Mode
    config: TrainConfig
    store: Path
    images: Path
    weights: str
    warm_up: tuple[Keys, ...]  # batches before the clock runs, the largest among them
    batches: tuple[Keys, ...]  # to time; again and again while there is time
    seconds: float  # for the timed ones; a round of all is ended if twice the time allows it
    threads: int  # of torch


@dataclass(frozen=True, kw_only=True)
class StepTrial:
    """What it took."""

    numbers: tuple[int, ...]  # of the timed batches, by place in the job's
    seconds: float  # of these steps, waiting included
    waiting: float  # of those, in which the batch was not there yet
    resting_nbytes: int  # RAM before the first step
    ram_nbytes: int  # most RAM, a batch of a validation included
    device_resting_nbytes: int | None  # of tensors on an accelerator, before the first step
    device_nbytes: int | None  # the most of it


class TrialFailedError(Exception):
    """The process ended without a result; says why in a few words."""


def measure_steps(job: StepJob) -> StepTrial:
    """Run the job in a process of its own, which is gone afterwards.

    Raises what `make_training_mode` raises, and TrialFailedError where memory did not suffice.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, sender), daemon=True)
    process.start()
    sender.close()
    try:
        deadline = time.monotonic() + _MOST_SECONDS
        while not receiver.poll(_LOOK_EVERY):
            if time.monotonic() > deadline:
                raise TrialFailedError(f"no step in {_MOST_SECONDS:.0f} s")
        answer = receiver.recv()
    except EOFError as error:
        process.join()
        raise TrialFailedError(_describe_end(process.exitcode)) from error
    finally:
        process.kill()
        process.join()
        receiver.close()
    if isinstance(answer, BaseException):
        raise answer
    result: StepTrial = answer
    return result


def time_steps(trainer: Trainer, loader: BatchLoader, job: StepJob) -> StepTrial:
    """Take the steps in this process."""
    resting, device_resting = peak_memory(_CPU), _peak_of_accelerator(trainer.device)
    plan = [*job.warm_up, *(job.batches * _MOST_ROUNDS)]
    numbers: list[int] = []
    seconds = waiting = 0.0
    batches = loader.read_ahead(PlannedBatch(keys, number=place) for place, keys in enumerate(plan))
    for place in range(len(plan)):
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        _step(trainer, batch, place, job.config.schedule.accumulate)
        if place < len(job.warm_up):
            continue
        numbers.append((place - len(job.warm_up)) % len(job.batches))
        waiting += waited
        seconds += time.perf_counter() - started
        is_round = numbers[-1] == len(job.batches) - 1
        if seconds > (job.seconds if is_round else 2 * job.seconds):
            break
    batches.close()
    _detect_once(trainer, loader, job.warm_up[0])
    return StepTrial(
        numbers=tuple(numbers),
        seconds=seconds,
        waiting=waiting,
        resting_nbytes=resting,
        ram_nbytes=peak_memory(_CPU),
        device_resting_nbytes=device_resting,
        device_nbytes=_peak_of_accelerator(trainer.device),
    )


def _peak_of_accelerator(device: torch.device) -> int | None:
    return peak_memory(device) if device.type == "cuda" else None


def _step(trainer: Trainer, batch: Batch, place: int, accumulate: int) -> None:
    trainer.add_gradients(batch)
    if (place + 1) % accumulate == 0:
        trainer.finish_step()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)


@torch.no_grad()
def _detect_once(trainer: Trainer, loader: BatchLoader, keys: Keys) -> None:
    """As a validation does, which takes more memory than small steps; nobody times it."""
    detector = trainer.detector.eval()
    as_many = keys[np.arange(EvalConfig().batch_size) % len(keys)]
    for batch in loader.read_ahead([PlannedBatch(as_many)]):
        own = batch.to(trainer.device)
        run_detector(detector, own.features, sizes_hw=own.sizes_hw, image_ids=own.image_ids)


def _work(job: StepJob, sender: Connection) -> None:
    """In the process of the trial."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends this one
    torch.set_num_threads(job.threads)
    try:
        with _silent():
            answer: StepTrial | BaseException = time_steps(*_make_training_mode(job), job)
    except CachedetError as error:
        answer = error
    except Exception as error:  # the parent tells it
        answer = _as_failure(error)
    with suppress(BrokenPipeError):  # the parent is gone
        sender.send(answer)


def _make_training_mode(job: StepJob) -> tuple[Trainer, BatchLoader]:
    """As `train-heads` does it; of the modes that need the backbone as `compare` does it."""
    store = FeatureStore.open(job.store)
    if job.mode == "cached":
        torch.manual_seed(job.config.seed)
        loader = make_run_loader(job.config, store)
        return make_trainer(job.config, manifest=store.manifest, total_steps=_TOTAL_STEPS), loader
    from cachedet.live.modes import make_training_mode

    training_mode = make_training_mode(
        job.mode,
        job.config,
        store=store,
        images=job.images,
        weights=job.weights,
        total_steps=_TOTAL_STEPS,
    )
    return training_mode.trainer, training_mode.loader


def _as_failure(error: Exception) -> Exception:
    """Whatever allocator it was: torch names them differently."""
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
        return TrialFailedError("memory does not suffice")
    return RuntimeError("".join(traceback.format_exception(error)))


def _describe_end(code: int | None) -> str:
    if code is not None and -code == signal.SIGKILL:
        return "its process was killed: memory does not suffice"
    return f"its process ended with status {code}"


@contextmanager
def _silent() -> Iterator[None]:
    """What a run says of itself (residency, empty classes) is not about the trial."""
    with open(os.devnull, "w") as nowhere:
        before, sys.stderr = sys.stderr, nowhere
        try:
            yield
        finally:
            sys.stderr = before

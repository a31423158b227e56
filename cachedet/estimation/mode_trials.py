"""Trials of the ways to train: steps taken in a process of their own, and what an epoch then takes.

In a process of its own the peak memory is that of the steps alone. That process imports this
module: it must not import the backbone, which training on a cache does without.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from cachedet.allocator import keep_freed_memory
from cachedet.config.run import ONLY_CACHED, EvalConfig, StagesConfig, TrainConfig
from cachedet.detector.protocol import run_detector
from cachedet.device import wait_for
from cachedet.errors import CachedetError
from cachedet.estimation.measured import Memory, Phase, Training
from cachedet.estimation.sample import Keys, TrialBatches
from cachedet.live.mode_names import Mode, needs_cache
from cachedet.loading.loader import BatchLoader, make_run_loader
from cachedet.loading.memory import peak_memory
from cachedet.loading.sampling import PlannedBatch
from cachedet.store.reader import FeatureStore
from cachedet.training.partial import build_partial_detector_of
from cachedet.training.trainer import Trainer, make_trainer

_CPU = torch.device("cpu")
_TOTAL_STEPS = 10_000  # of the schedule: a learning rate that stays small
_MOST_ROUNDS = 50
_LOOK_EVERY = 0.2  # seconds
_MOST_SECONDS = 600.0  # after which a process that says nothing is given up

Peaks = tuple[int, int | None]
"""The most bytes so far: RAM, and tensors on an accelerator (None without one)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepJob:
    """What the process shall train on."""

    mode: Mode
    config: TrainConfig
    store: Path
    images: Path  # folder of the image files
    weights: str  # of the backbone
    batches: TrialBatches  # the timed ones come again and again while there is time
    seconds: float  # for the timed ones; a round of all is ended if twice the time allows it
    threads: int  # of torch


@dataclass(frozen=True, kw_only=True)
class StepTrial:
    """What it took."""

    numbers: tuple[int, ...]  # indices of the batches that were timed
    seconds: float  # of these steps, waiting included
    waiting: float  # of those, in which the batch was not there yet
    memory: Memory  # of the largest batch of the epoch, or of a validation


class TrialFailedError(Exception):
    """The process ended without a result; says why in a few words."""


def cached_heads(config: TrainConfig) -> TrainConfig:
    """The config with a backbone that is frozen as a whole."""
    return config.model_copy(update={"freeze_at": None, "stages": StagesConfig()})


def partial_heads(config: TrainConfig, cut: str) -> TrainConfig:
    """The config with the stages behind `cut` trained as it says."""
    plain = plain_heads(config)
    return plain.model_copy(update={"freeze_at": cut, "stages": config.stages})


def plain_heads(config: TrainConfig) -> TrainConfig:
    """The config without what `make_training_mode` refuses: what only cached features can have."""
    return config.model_copy(update=ONLY_CACHED)


def measure_steps(job: StepJob) -> StepTrial:
    """Run the job in a process of its own, which is gone afterwards.

    Raises what `make_training_mode` raises, and TrialFailedError where memory did not suffice.
    """
    # Not forked from one that is ready: the pages of its libraries would not count as memory.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, sender), daemon=True)
    with _interrupts_held():
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


def try_mode(
    job: StepJob,
    *,
    stage: str,  # name of the stage that computes
    beside: Mapping[str, float],  # seconds of an epoch of the stages that run beside it
    epoch_pixels: int,  # padded ones, that an epoch shows
    take_steps: Callable[[StepJob], StepTrial] = measure_steps,
) -> tuple[Training, float]:
    """One epoch of the job's mode, and the seconds of its steps without waiting (0: it failed).

    Raises what `make_training_mode` raises.
    """
    try:
        trial = take_steps(job)
    except TrialFailedError as error:
        return Training(phase=None, memory=None, failure=str(error)), 0.0
    per_epoch = epoch_pixels / sum(job.batches.pixels[number] for number in trial.numbers)
    computing = (trial.seconds - trial.waiting) * per_epoch
    phase = Phase(seconds=trial.seconds * per_epoch, stages={stage: computing, **beside})
    return Training(phase=phase, memory=trial.memory), computing


def time_steps(trainer: Trainer, loader: BatchLoader, job: StepJob) -> StepTrial:
    """Take the steps in this process: those of the warm-up, then the timed ones."""
    resting = _peaks(trainer.device)
    plan = [job.batches.warm_up, *(job.batches.timed * _MOST_ROUNDS)]
    numbers: list[int] = []
    seconds = waiting = 0.0
    batches = loader.read_ahead(PlannedBatch(keys, number=step) for step, keys in enumerate(plan))
    for step in range(len(plan)):
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        trainer.add_gradients(batch)
        if (step + 1) % job.config.schedule.accumulate == 0:
            trainer.finish_step()
        wait_for(trainer.device)
        if step == 0:
            continue
        numbers.append((step - 1) % len(job.batches.timed))
        waiting += waited
        seconds += time.perf_counter() - started
        is_round = numbers[-1] == len(job.batches.timed) - 1
        if seconds > (job.seconds if is_round else 2 * job.seconds):
            break
    batches.close()
    _detect_once(trainer, loader, job.batches.warm_up)
    return StepTrial(
        numbers=tuple(numbers),
        seconds=seconds,
        waiting=waiting,
        memory=memory_of(resting, _peaks(trainer.device), job.batches.enlarge),
    )


def memory_of(resting: Peaks, most: Peaks, enlarge: float) -> Memory:
    """What the largest batch takes, where `1 / enlarge` of it was tried."""
    device = None
    if resting[1] is not None and most[1] is not None:
        device = resting[1] + (most[1] - resting[1]) * enlarge
    return Memory(resting=resting[0], working=max(0, most[0] - resting[0]) * enlarge, device=device)


def _peaks(device: torch.device) -> Peaks:
    return peak_memory(_CPU), peak_memory(device) if device.type == "cuda" else None


@torch.no_grad()
def _detect_once(trainer: Trainer, loader: BatchLoader, keys: Keys) -> None:
    """A batch as in a validation, which takes more memory than small steps; nobody times it."""
    detector = trainer.detector.eval()
    as_many = keys[np.arange(EvalConfig().batch_size) % len(keys)]
    for read in loader.read_ahead([PlannedBatch(as_many)]):
        batch = read.to(trainer.device)
        run_detector(detector, batch.features, sizes_hw=batch.sizes_hw, image_ids=batch.image_ids)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the body is done; a process that is started inside never gets one.

    While it imports, it would end with a traceback of its own. Python's handler waits, too: it runs
    in this thread whichever thread the system gives the signal to.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # else the first start would, and let signals through again
    held: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    if is_main:
        handler = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if held:
            signal.raise_signal(signal.SIGINT)


def _work(job: StepJob, sender: Connection) -> None:
    """Do the job in the process of the trial, and send its result or its error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends this one
    keep_freed_memory()
    torch.set_num_threads(job.threads)
    try:
        with _silent():
            answer: StepTrial | BaseException = time_steps(*make_job_trainer(job), job)
    except CachedetError as error:
        answer = error
    except Exception as error:  # the parent raises it
        answer = _as_failure(error)
    with suppress(BrokenPipeError):  # the parent is gone
        sender.send(answer)


def make_job_trainer(job: StepJob) -> tuple[Trainer, BatchLoader]:
    """Make what `train-heads` trains on a cache, or `compare` with the backbone in the step."""
    store = FeatureStore.open(job.store)
    if needs_cache(job.mode):
        torch.manual_seed(job.config.seed)
        loader = make_run_loader(job.config, store)
        trainer = make_trainer(
            job.config,
            manifest=store.manifest,
            total_steps=_TOTAL_STEPS,
            detector=build_partial_detector_of(job.config, store),
        )
        return trainer, loader
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

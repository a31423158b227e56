"""The training loop: steps, epochs, validations, and the ways in which it ends.

Everything that is written goes through `records` and `checkpoints`, everything that moves weights
through `Trainer.finish_step`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from cachedet.config.run import TrainConfig
from cachedet.distributed.collective import from_first, is_first
from cachedet.distributed.data_parallel import first_of_ranks
from cachedet.errors import RemoteStoreError, StoreError
from cachedet.loading.loader import BatchLoader
from cachedet.loading.memory import peak_memory
from cachedet.store.format.manifest import Manifest
from cachedet.structures import Batch
from cachedet.training.checkpoint_writer import CheckpointWriter, NoOpCheckpointer
from cachedet.training.optimizer import set_training_mode
from cachedet.training.records import NoOpRecorder, RunRecords
from cachedet.training.run_folder import RunFolder
from cachedet.training.stopping import StopRequested, StopSignals, TimeBudget
from cachedet.training.trainer import StepStatistics, Trainer

# Why a run ends, if not by a signal:
FINISHED, MAX_STEPS, EARLY_STOPPING, BUDGET = "finished", "max_steps", "early_stopping", "budget"
GIVEN_UP = "given_up"  # by whoever watches its validations

Validator = Callable[[nn.Module, Callable[[], None]], Mapping[str, float]]
"""Scores (ap, ap50, ap75) of a detector; calls the function from time to time, which may raise."""

OnValidation = Callable[[int, Mapping[str, float]], bool]
"""Called with the epochs done and their scores, before these are saved; True gives the run up."""


@dataclass(frozen=True, kw_only=True)
class SessionReport:
    """What one stretch of a run did."""

    reason: str  # it ended: finished, max_steps, early_stopping, budget, given_up, or a signal
    seconds: float
    step_seconds: float  # of those in steps, without validations and saving
    losses: tuple[float, ...]  # of every step
    processor_seconds: float  # of this process, with validations and saving
    peak_memory: int  # bytes, of this process until now

    @property
    def was_interrupted(self) -> bool:
        """By a signal; the run can go on."""
        return is_signal(self.reason)


def is_signal(reason: str) -> bool:
    """Whether a run ended by a signal, so that it can go on."""
    return reason not in (FINISHED, MAX_STEPS, EARLY_STOPPING, BUDGET, GIVEN_UP)


def run_session(
    config: TrainConfig,
    *,
    folder: RunFolder,
    trainer: Trainer,
    loader: BatchLoader,
    manifest: Manifest,
    validator: Validator | None,
    notes: Sequence[str] = (),
    budget: TimeBudget | None = None,
    on_validation: OnValidation | None = None,
) -> SessionReport:
    """Train from where `trainer` stands to an end of the run, or until a signal comes.

    With several processes, each calls it, and only the first writes. A `budget` takes the place of
    the config's epochs.

    Raises NonFiniteLossError, StoreError, CheckpointError, RankError.
    """
    started, busy = time.perf_counter(), time.process_time()
    records: RunRecords | NoOpRecorder = NoOpRecorder()
    checkpoints: CheckpointWriter | NoOpCheckpointer = NoOpCheckpointer()
    if is_first():
        records = RunRecords(
            folder, trainer, epochs=config.schedule.epochs, tensorboard=config.tensorboard
        )
        checkpoints = CheckpointWriter(
            folder, config=config, manifest=manifest, first_step=trainer.step
        )
    with records, StopSignals() as signals:
        loop = TrainingLoop(
            config=config,
            trainer=trainer,
            loader=loader,
            epochs=config.schedule.epochs if budget is None else sys.maxsize,
            validator=validator,
            records=records,
            checkpoints=checkpoints,
            signals=signals,
            budget=budget,
            on_validation=on_validation,
        )
        for note in notes:
            records.note(note)
        reason = loop.run()
    if is_first():
        folder.log(f"ended at step {trainer.step}: {reason}")
    return SessionReport(
        reason=reason,
        seconds=time.perf_counter() - started,
        step_seconds=sum(loop.seconds),
        losses=tuple(loop.losses),
        processor_seconds=time.process_time() - busy,
        peak_memory=peak_memory(trainer.device),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingLoop:
    """Trains until one of its ends, which all ranks reach together."""

    config: TrainConfig
    trainer: Trainer  # where it is, the loop goes on
    loader: BatchLoader
    epochs: int
    validator: Validator | None  # None: there is nothing to validate on
    records: RunRecords | NoOpRecorder
    checkpoints: CheckpointWriter | NoOpCheckpointer
    signals: StopSignals
    budget: TimeBudget | None
    on_validation: OnValidation | None
    losses: list[float] = field(default_factory=list)  # of every step of this call
    seconds: list[float] = field(default_factory=list)  # likewise, waiting for batches included

    def run(self) -> str:
        """Why it ended: one of the reasons above, or the name of a signal.

        The last state is saved in each case.
        """
        reason = self._train()
        if self.validator is None and reason in (FINISHED, EARLY_STOPPING):
            self.checkpoints.save_best(self.trainer)
        return reason

    def _train(self) -> str:
        """Where the store can no longer be read, the steps that were taken are saved too.

        Once a signal has come, a read that stalls is given up, and with it the step under way.
        """
        trainer = self.trainer
        self._keep_pace()  # of a run that goes on
        with closing(
            self.loader.epoch(trainer.epoch, skip=trainer.batch, until=self.epochs)
        ) as read_ahead:
            batches = TimedBatches(read_ahead)
            try:
                reason = self._train_epochs(batches)
            except StoreError as error:
                self._save_whole_steps(batches)
                signal = self.signals.received
                if signal is None or not isinstance(error, RemoteStoreError):
                    raise
                return signal
            self._save_whole_steps(batches)
            return reason

    def _save_whole_steps(self, batches: TimedBatches) -> None:
        if not batches.images:  # else a step is half done, and its batches left traces
            self.checkpoints.save_unsaved(self.trainer)

    def _train_epochs(self, batches: TimedBatches) -> str:
        trainer = self.trainer
        while trainer.epoch < self.epochs:
            if trainer.stopping is not None and trainer.stopping.is_exhausted:
                self.records.note(f"stopped early: {trainer.stopping.describe()}")
                return EARLY_STOPPING
            reason = self._train_epoch(batches) or self._close_epoch()
            if reason is not None:
                return reason
        return FINISHED

    def _train_epoch(self, batches: TimedBatches) -> str | None:
        """The rest of the epoch; returns why it was left before its end."""
        trainer, max_steps = self.trainer, self.config.max_steps
        left = len(self.loader.plan(trainer.epoch)) - trainer.batch
        while left > 0:
            signal = first_of_ranks(self.signals.received)
            if signal is not None:
                return signal
            if max_steps is not None and trainer.step >= max_steps:
                return MAX_STEPS
            if self.budget is not None and self.budget.is_spent(trainer.seconds):
                return BUDGET
            count = min(self.config.schedule.accumulate, left)  # an epoch's last step has fewer
            self._take_step(batches, count)
            left -= count
            self.checkpoints.save_if_due(trainer)
        return None

    def _take_step(self, batches: TimedBatches, count: int) -> None:
        started = time.perf_counter()
        for batch in batches.take(count):
            self.trainer.add_gradients(batch)
        row = self.trainer.finish_step()
        self.trainer.batch += count
        seconds = time.perf_counter() - started
        self.trainer.seconds += seconds
        self._keep_pace()
        taken = StepStatistics.of_step(
            {name: value for name, value in row.items() if name.startswith("loss")},
            images=batches.images,
            seconds=seconds,
            waiting=batches.waiting,
        )
        batches.finish_step()
        self.trainer.epoch_statistics.merge(taken)
        self.records.after_step(self.trainer, row, taken)
        self.losses.append(row["loss"])
        self.seconds.append(seconds)

    def _keep_pace(self) -> None:
        """With a budget, let the schedule end where it ends."""
        if self.budget is None:
            return
        trainer, rate = self.trainer, self.trainer.learning_rate
        total = self.budget.total_steps(
            done=trainer.step, spent=trainer.seconds, planned=rate.total_steps
        )
        trainer.learning_rate = rate.stretched(total)

    def _close_epoch(self) -> str | None:
        """Validate where it is due, and save; returns why the run ends here, if it does."""
        trainer, stopping = self.trainer, self.trainer.stopping
        before = None if stopping is None else stopping.state_dict()
        self._observe({"loss": trainer.epoch_statistics.means()["loss"]})
        scores = None
        if self.validator is not None and self._is_due():
            try:
                scores, signal = from_first(partial(self._validate, self.validator))
            except StoreError:
                self._reopen(before)
                raise
            if signal is not None:
                self._reopen(before)
                return signal
        given_up = False
        if scores is not None and self.on_validation is not None:
            given_up = self.on_validation(trainer.epoch + 1, scores)
        improved = scores is not None and scores["ap"] > trainer.best_ap
        if scores is not None:
            trainer.best_ap = max(trainer.best_ap, scores["ap"])
            self._observe(scores)
        self.records.after_epoch(trainer, scores)
        trainer.finish_epoch()
        if improved:
            self.checkpoints.save_best(trainer)
        self.checkpoints.save_last(trainer)
        return GIVEN_UP if given_up else None

    def _reopen(self, stopping: dict[str, Any] | None) -> None:
        """Take back what early stopping saw of an epoch that stays open: resuming closes it."""
        if self.trainer.stopping is not None and stopping is not None:
            self.trainer.stopping.load_state_dict(stopping)

    def _observe(self, values: Mapping[str, float]) -> None:
        stopping = self.trainer.stopping
        if stopping is not None and stopping.metric in values:
            stopping.observe(values[stopping.metric])

    def _is_due(self) -> bool:
        done, stopping = self.trainer.epoch + 1, self.trainer.stopping
        if done == self.epochs or (stopping is not None and stopping.is_exhausted):
            return True
        return self.config.eval_every > 0 and done % self.config.eval_every == 0

    def _validate(self, validator: Validator) -> tuple[Mapping[str, float] | None, str | None]:
        """Scores with the weights that count, or the name of the signal that came meanwhile.

        Afterwards the detector is in training again.
        """
        detector = self.trainer.detector
        started = time.perf_counter()
        try:
            with self.trainer.scored_weights():
                scores = validator(detector, self.signals.raise_if_received)
        except StopRequested:
            return None, self.signals.received
        finally:
            set_training_mode(detector)
        self.records.after_validation(self.trainer, scores, seconds=time.perf_counter() - started)
        return scores, None


class TimedBatches:
    """Batches, and what the step under way waited for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.waiting = 0.0  # seconds
        self.images = 0  # taken by all ranks; 0 between steps

    def take(self, count: int) -> Iterator[Batch]:
        """The next `count` batches; there are as many."""
        for _ in range(count):
            started = time.perf_counter()
            batch = next(self._batches)
            self.waiting += time.perf_counter() - started
            self.images += batch.global_images
            yield batch

    def finish_step(self) -> None:
        """Count from zero."""
        self.waiting, self.images = 0.0, 0

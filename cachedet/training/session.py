"""One stretch of training: a trainer, its batches, and everything the run folder gets of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cachedet.collective import is_first
from cachedet.config import TrainConfig
from cachedet.store.manifest import Manifest
from cachedet.training.budget import TimeBudget
from cachedet.training.checkpoint_writer import CheckpointWriter
from cachedet.training.follower import NoCheckpoints, NoRecords
from cachedet.training.interruption import StopSignals
from cachedet.training.loader import BatchLoader
from cachedet.training.loop import TrainingLoop, Validator, is_signal
from cachedet.training.memory import peak_memory
from cachedet.training.records import RunRecords
from cachedet.training.run_folder import RunFolder
from cachedet.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class SessionReport:
    """What one stretch did."""

    reason: str  # it ended: finished, max_steps, early_stopping, budget, or a signal's name
    seconds: float
    step_seconds: float  # of those in steps, without validations and saving
    losses: tuple[float, ...]  # of every step
    peak_memory: int  # bytes, of this process until now

    @property
    def was_interrupted(self) -> bool:
        """By a signal; the run can go on."""
        return is_signal(self.reason)


def run_session(
    config: TrainConfig,
    *,
    folder: RunFolder,
    trainer: Trainer,
    loader: BatchLoader,
    manifest: Manifest,
    validator: Validator | None,
    remarks: Sequence[str] = (),
    budget: TimeBudget | None = None,
) -> SessionReport:
    """Train from where `trainer` stands to an end of the run, or until a signal comes.

    With several processes, each calls it, and only the first writes. A `budget` takes the place of
    the config's epochs.

    Raises NonFiniteLossError, StoreError, CheckpointError, RankError.
    """
    started = time.perf_counter()
    records = _make_records(folder, trainer, config) if is_first() else NoRecords()
    with records, StopSignals() as signals:
        loop = TrainingLoop(
            trainer=trainer,
            loader=loader,
            epochs=config.schedule.epochs if budget is None else sys.maxsize,
            accumulate=config.schedule.accumulate,
            max_steps=config.max_steps,
            eval_every=config.eval_every,
            validator=validator,
            records=records,
            checkpoints=_make_writer(folder, config, manifest, first_step=trainer.step)
            if is_first()
            else NoCheckpoints(),
            signals=signals,
            budget=budget,
        )
        for remark in remarks:
            records.remark(remark)
        reason = loop.run()
    if is_first():
        folder.log(f"ended at step {trainer.step}: {reason}")
    return SessionReport(
        reason=reason,
        seconds=time.perf_counter() - started,
        step_seconds=sum(loop.seconds),
        losses=tuple(loop.losses),
        peak_memory=peak_memory(trainer.device),
    )


def _make_records(folder: RunFolder, trainer: Trainer, config: TrainConfig) -> RunRecords:
    return RunRecords(
        folder, trainer, epochs=config.schedule.epochs, tensorboard=config.tensorboard
    )


def _make_writer(
    folder: RunFolder, config: TrainConfig, manifest: Manifest, *, first_step: int
) -> CheckpointWriter:
    return CheckpointWriter(
        folder,
        config=config,
        manifest=manifest,
        every_seconds=config.checkpoint_every_seconds,
        every_steps=config.checkpoint_every_steps,
        first_step=first_step,
    )

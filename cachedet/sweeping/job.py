"""One training of a sweep in its own process: a trial that is watched, or a final one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from cachedet.config.run import EvalConfig, TrainConfig
from cachedet.errors import CachedetError
from cachedet.evaluate import evaluate
from cachedet.series.own_process import goes_on
from cachedet.store.reader import FeatureStore
from cachedet.train import TrainReport, train
from cachedet.training.metrics_file import read_table
from cachedet.training.run_folder import RunFolder
from cachedet.training.stopping import STOPPED_STATUS


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that the process of a training needs to know."""

    config: TrainConfig
    folder: Path  # of the run
    train: str  # store
    val: str  # store
    choosing: tuple[int, ...]  # rows of it to validate on
    reporting: tuple[int, ...] = ()  # rows of it to score the best weights on, where there are any
    figure: str = "ap"  # that a trial is judged by
    is_watched: bool = True  # each validation is told, and may end it
    threads: int | None = None  # None: as torch has it


@dataclass(frozen=True, kw_only=True)
class Validated:
    """A validation; the process waits for an answer: whether to give the run up."""

    epoch: int  # done
    ap: float
    is_last: bool  # of the run, which is whole then


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The training came to an end."""

    figures: dict[str, Any]
    curve: tuple[tuple[int, float], ...]  # epochs done and AP of each validation, all calls'


@dataclass(frozen=True, kw_only=True)
class Failed:
    """It did not."""

    error: str


Message = Validated | Trained | Failed


class _Deserted(Exception):
    """Nobody answers: the sweep is ending. What the run has saved is whole."""


def work(job: Job, pipe: Connection) -> None:
    """Train, or go on, in this process, and tell what came of it."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    try:
        report = _train(job, pipe)
        if report.was_interrupted:
            sys.exit(STOPPED_STATUS)
        figures, curve = _figures_of(job, report), _curve_of(RunFolder(job.folder))
        message: Message = Trained(figures=figures, curve=curve)
    except CachedetError as error:
        message = Failed(error=str(error))
    except OSError as error:  # a full disk, most often: the others may find room
        message = Failed(error=f"{error.filename or job.folder}: {error.strerror or error}")
    except (KeyboardInterrupt, _Deserted):
        sys.exit(STOPPED_STATUS)
    except Exception as error:  # the other trials go on, whatever it was
        reason = str(error).strip().partition("\n")[0]
        message = Failed(error=f"{type(error).__name__}: {reason}")
    with suppress(OSError):  # nobody waits for it any more
        pipe.send(message)


def _train(job: Job, pipe: Connection) -> TrainReport:
    epochs = job.config.schedule.epochs

    def ask(epoch: int, scores: Mapping[str, float]) -> bool:
        try:
            pipe.send(Validated(epoch=epoch, ap=scores["ap"], is_last=epoch == epochs))
            given_up: bool = pipe.recv()
        except (EOFError, OSError) as error:
            raise _Deserted from error
        return given_up

    return train(
        job.config,
        train_store=job.train,
        val_store=FeatureStore.open(job.val).keep_rows(job.choosing),
        run=job.folder,
        resume=goes_on(RunFolder(job.folder)),
        on_validation=ask if job.is_watched else None,
    )


def _curve_of(run: RunFolder) -> tuple[tuple[int, float], ...]:
    """What metrics.csv holds of it, where an earlier call may have told nobody."""
    rows = read_table(run.metrics).rows
    return tuple((int(row["epoch"]), float(row["val_ap"])) for row in rows if row.get("val_ap"))


def _figures_of(job: Job, report: TrainReport) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "ap": report.best_ap,
        "seconds": report.step_seconds,
        "epochs": report.epochs,
        "images": report.epochs * report.images,
        "parameters": report.parameters,
        "peak_memory": report.peak_memory,
    }
    rows = job.reporting or job.choosing
    if job.reporting or job.figure != "ap":
        part = FeatureStore.open(job.val).keep_rows(rows)
        scores = evaluate(job.folder, part, config=EvalConfig(device=job.config.device)).scores
        figures[job.figure] = getattr(scores, job.figure)
    return figures

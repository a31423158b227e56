"""What a run writes down and shows while it trains: metrics.csv, TensorBoard, log.txt, the table.

One object of one process: with several, only the first has it.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType

from cachedet.progress import StageProgress
from cachedet.training.epoch_table import EpochFigures, EpochTable
from cachedet.training.metrics_log import MetricsLog
from cachedet.training.run_folder import RunFolder
from cachedet.training.statistics import StepStatistics
from cachedet.training.tensorboard_log import TensorBoardLog
from cachedet.training.trainer import Trainer

_LOG_EVERY = 20  # steps between rows of metrics.csv
_WIDE = 120  # characters of a line of log.txt


def log_columns(loss_names: Sequence[str]) -> tuple[str, ...]:
    """Of metrics.csv."""
    losses = (f"loss_{name}" for name in loss_names)
    first = ("step", "epoch", "lr", "loss")
    speed = ("pictures_per_second", "waiting_share", "seconds")
    return (*first, *losses, "grad_norm", *speed, "val_ap", "val_ap50", "val_ap75")


class RunRecords:
    """Context manager around the training loop.

    Args:
        folder: of the run.
        trainer: where the run starts or goes on.
        epochs: of the run.
        tensorboard: whether to write its event files.
    """

    def __init__(
        self, folder: RunFolder, trainer: Trainer, *, epochs: int, tensorboard: bool
    ) -> None:
        self._folder = folder
        self._epochs = epochs
        self._stack = ExitStack()
        names = trainer.detector.loss_names
        self._metrics = MetricsLog(
            folder.metrics,
            log_columns(names),
            keep_until_step=trainer.step,
            keep_until_epoch=trainer.epoch,
        )
        self._tensorboard = (
            TensorBoardLog(folder.tensorboard, first_step=trainer.step + 1) if tensorboard else None
        )
        total = trainer.learning_rate.total_steps
        self._progress = StageProgress("train", total=total, unit="steps", done=trainer.step)
        self._shown = EpochTable(names, width=shutil.get_terminal_size((_WIDE, 24)).columns)
        self._logged = EpochTable(names, width=_WIDE)
        self._window = StepStatistics()
        self._note = f"best AP {trainer.best_ap:.3f}" if trainer.best_ap >= 0 else ""

    def __enter__(self) -> RunRecords:
        self._stack.enter_context(self._metrics)
        self._stack.enter_context(self._progress)
        if self._tensorboard is not None:
            self._stack.enter_context(contextlib.closing(self._tensorboard))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def after_step(self, trainer: Trainer, row: Mapping[str, float], taken: StepStatistics) -> None:
        """One step is done; `row` is what `Trainer.finish_step` returned, `taken` what it took."""
        self._progress.advance(1, note=f"loss {row['loss']:.3f}  {self._note}")
        self._window.merge(taken)
        if trainer.step % _LOG_EVERY != 0 and trainer.step != 1:
            return
        self._append(
            trainer,
            {
                "lr": trainer.optimizer.param_groups[0]["lr"],
                **row,
                "pictures_per_second": self._window.pictures_per_second,
                "waiting_share": self._window.waiting_share,
            },
        )
        self._window = StepStatistics()

    def after_validation(
        self, trainer: Trainer, scores: Mapping[str, float], *, seconds: float
    ) -> None:
        """`scores` has ap, ap50 and ap75; `trainer.best_ap` is still the best before them."""
        self._append(
            trainer,
            {**{f"val_{name}": value for name, value in scores.items()}, "seconds": seconds},
            epoch=trainer.epoch + 1,
        )
        best = max(trainer.best_ap, scores["ap"])
        self._note = f"AP {scores['ap']:.3f}  AP50 {scores['ap50']:.3f}  best AP {best:.3f}"
        self._progress.remark(self._note)

    def after_epoch(self, trainer: Trainer, scores: Mapping[str, float] | None) -> None:
        """The epoch that `trainer` is still in is over; None: it was not validated."""
        statistics = trainer.epoch_statistics
        figures = EpochFigures(
            epoch=trainer.epoch + 1,
            epochs=self._epochs,
            learning_rate=trainer.optimizer.param_groups[0]["lr"],
            losses=statistics.means(),
            ap=None if scores is None else scores["ap"],
            ap50=None if scores is None else scores["ap50"],
            pictures_per_second=statistics.pictures_per_second,
            waiting_share=statistics.waiting_share,
        )
        for line in self._shown.lines(figures):
            print(line, file=sys.stderr)  # above the progress line, which rich redraws
        for line in self._logged.lines(figures):
            self._folder.log(line)

    def remark(self, line: str) -> None:
        """One line for the terminal and log.txt."""
        print(line, file=sys.stderr)
        self._folder.log(line)

    def _append(
        self, trainer: Trainer, values: Mapping[str, float], *, epoch: int | None = None
    ) -> None:
        place = {"step": trainer.step, "epoch": trainer.epoch if epoch is None else epoch}
        self._metrics.append({**place, **values})
        if self._tensorboard is not None:
            self._tensorboard.append(values, step=trainer.step)

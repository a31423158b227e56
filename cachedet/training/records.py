"""What a run writes down and logs while it trains: metrics.csv, TensorBoard, log.txt, a table."""

from __future__ import annotations

import contextlib
import csv
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from cachedet.config.run import VALIDATED
from cachedet.errors import CheckpointError, ConfigError
from cachedet.progress import StageProgress
from cachedet.training.run_folder import RunFolder
from cachedet.training.trainer import StepStatistics, Trainer

_log = logging.getLogger("cachedet.training")

_LOG_EVERY = 20  # steps between rows of metrics.csv
_WIDE = 120  # characters of a line of log.txt
_GAP = "  "  # between columns of the table
_REPEAT_HEADER = 25  # lines


class RunRecords:
    """Context manager around the training loop; of several processes only the first has one.

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
        self._started_at = trainer.step, trainer.epoch
        self._tables: _Tables | None = None  # the names of the losses come with the first step
        self._tensorboard = (
            TensorBoardLog(folder.tensorboard, first_step=trainer.step + 1) if tensorboard else None
        )
        total = trainer.learning_rate.total_steps
        self._progress = StageProgress("train", total=total, unit="steps", done=trainer.step)
        self._window = StepStatistics()
        self._note = f"best AP {trainer.best_ap:.3f}" if trainer.best_ap >= 0 else ""

    def __enter__(self) -> RunRecords:
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
                "images_per_second": self._window.images_per_second,
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
        self._progress.note(self._note)

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
            images_per_second=statistics.images_per_second,
            waiting_share=statistics.waiting_share,
        )
        tables = self._tables_of(trainer)
        for line in tables.shown.lines(figures):
            _log.info(line)
        for line in tables.logged.lines(figures):
            self._folder.log(line)

    def note(self, line: str) -> None:
        """Log one line, also in log.txt."""
        _log.info(line)
        self._folder.log(line)

    def _tables_of(self, trainer: Trainer) -> _Tables:
        if self._tables is None:
            sums = trainer.epoch_statistics.loss_sums
            names = [name.removeprefix("loss_") for name in sums if name != "loss"]
            step, epoch = self._started_at
            metrics = MetricsLog(
                self._folder.metrics,
                log_columns(names),
                keep_until_step=step,
                keep_until_epoch=epoch,
            )
            self._tables = _Tables(
                metrics=self._stack.enter_context(metrics),
                shown=EpochTable(names, width=shutil.get_terminal_size((_WIDE, 24)).columns),
                logged=EpochTable(names, width=_WIDE),
            )
        return self._tables

    def _append(
        self, trainer: Trainer, values: Mapping[str, float], *, epoch: int | None = None
    ) -> None:
        position = {"step": trainer.step, "epoch": trainer.epoch if epoch is None else epoch}
        self._tables_of(trainer).metrics.append({**position, **values})
        if self._tensorboard is not None:
            self._tensorboard.append(values, step=trainer.step)


class NoOpRecorder:
    """Takes the place of `RunRecords` in the other processes; writes and shows nothing."""

    def __enter__(self) -> NoOpRecorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return

    def after_step(self, trainer: Trainer, row: Mapping[str, float], taken: StepStatistics) -> None:
        """See RunRecords."""

    def after_validation(
        self, trainer: Trainer, scores: Mapping[str, float], *, seconds: float
    ) -> None:
        """See RunRecords."""

    def after_epoch(self, trainer: Trainer, scores: Mapping[str, float] | None) -> None:
        """See RunRecords."""

    def note(self, line: str) -> None:
        """See RunRecords."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tables:
    """What has a column for each loss."""

    metrics: MetricsLog
    shown: EpochTable  # as wide as the terminal
    logged: EpochTable  # in log.txt


class MetricsLog:
    """Appends rows with fixed columns; rows after the resumed step are dropped first.

    Args:
        path: of the file.
        columns: names, "step" and "epoch" among them.
        keep_until_step, keep_until_epoch: where the run goes on; a row of a validation counts the
            epochs that are done, so that one that will be made again is dropped.

    Raises CheckpointError where the file has other columns.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        *,
        keep_until_step: int = 0,
        keep_until_epoch: int = 0,
    ) -> None:
        self.path = path
        self.columns = tuple(columns)
        kept = [
            row
            for row in self._rows()
            if int(row["step"]) <= keep_until_step and int(row["epoch"]) <= keep_until_epoch
        ]
        self._file = path.open("w", encoding="utf-8", newline="", buffering=1)
        self._writer = csv.DictWriter(self._file, self.columns)
        self._writer.writeheader()
        self._writer.writerows(kept)
        self._file.flush()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, row: Mapping[str, float]) -> None:
        """Write one row; columns it lacks stay empty, unknown columns are a ValueError."""
        self._writer.writerow(row)

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        if tuple(reader.fieldnames or ()) != self.columns:
            raise CheckpointError(
                f"{self.path} has columns {reader.fieldnames}, expected {list(self.columns)}; "
                "move the file away to start a new one"
            )
        return rows


def log_columns(loss_names: Sequence[str]) -> tuple[str, ...]:
    """The columns of metrics.csv."""
    losses = (f"loss_{name}" for name in loss_names)
    first = ("step", "epoch", "lr", "loss")
    speed = ("images_per_second", "waiting_share", "seconds")
    return (*first, *losses, "grad_norm", *speed, *(f"val_{name}" for name in VALIDATED))


class TensorBoardLog:
    """Scalars of a run; events after the resumed step are purged.

    Raises ConfigError where the package is missing.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def append(self, values: Mapping[str, float], *, step: int) -> None:
        """`val_ap` becomes validation/ap, everything else training/<name>."""
        for name, value in values.items():
            section = "validation" if name.startswith("val_") else "training"
            self._writer.add_scalar(f"{section}/{name.removeprefix('val_')}", value, step)

    def close(self) -> None:
        self._writer.close()


def require_tensorboard() -> None:
    """Raises ConfigError where the package is missing."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"tensorboard: true needs the tensorboard package ({error}); "
            "pip install 'cachedet[tensorboard]', or set tensorboard: false (metrics.csv has all)"
        ) from error


@dataclass(frozen=True, kw_only=True)
class EpochFigures:
    """What an epoch reached."""

    epoch: int  # epochs done
    epochs: int  # of the run
    learning_rate: float  # of its last step
    losses: Mapping[str, float]  # "loss" and "loss_*", means over its images
    ap: float | None  # None: not validated
    ap50: float | None
    images_per_second: float  # of training, without validation
    waiting_share: float  # of the training time, for data


class EpochTable:
    """Lines of equal columns.

    Args:
        parts: names of the loss parts.
        width: characters of a line; where the parts do not fit, the total alone is shown.
    """

    def __init__(self, parts: Sequence[str], *, width: int) -> None:
        self._parts = tuple(parts)
        if len(self.header()) > width:
            self._parts = ()
        self._lines = 0

    def header(self) -> str:
        parts = [f"{name:>{_width_of(name)}}" for name in self._parts]
        columns = ["  epoch", "     lr", "  loss", *parts, "   AP", " AP50", "  img/s", "wait"]
        return _GAP.join(columns)

    def lines(self, figures: EpochFigures) -> list[str]:
        """The line of an epoch, with the header before it from time to time."""
        parts = [
            f"{_short(figures.losses.get(f'loss_{name}')):>{_width_of(name)}}"
            for name in self._parts
        ]
        line = _GAP.join(
            [
                f"{f'{figures.epoch}/{figures.epochs}':>7}",
                f"{figures.learning_rate:>7.1e}",
                f"{_short(figures.losses.get('loss')):>6}",
                *parts,
                f"{_score(figures.ap):>5}",
                f"{_score(figures.ap50):>5}",
                f"{figures.images_per_second:>7.1f}",
                f"{figures.waiting_share:>4.0%}",
            ]
        )
        header = [self.header()] if self._lines % _REPEAT_HEADER == 0 else []
        self._lines += 1
        return [*header, line]


def _width_of(name: str) -> int:
    return max(len(name), 6)


def _short(value: float | None) -> str:
    """Six characters at most for what is between 0.001 and 99999."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

"""What a run writes down and logs while it trains: metrics.csv, TensorBoard, log.txt, a table."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cachedet.config.run import VALIDATED
from cachedet.errors import ConfigError
from cachedet.progress import StageProgress
from cachedet.training.metrics_file import MetricsLog, repair
from cachedet.training.run_folder import RunFolder, cannot_write
from cachedet.training.trainer import StepStatistics, Trainer

_log = logging.getLogger("cachedet.training")

_LOG_EVERY = 20  # steps between rows of metrics.csv
_WIDE = 120  # characters of a line of log.txt
_GAP = "  "  # between columns of the table
_REPEAT_HEADER = 25  # lines


class RunRecords:
    """Context manager around the training loop; of several processes only the first has one.

    `trainer` stands where the run starts or goes on.
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
        step, epoch = self._started_at
        if step > 0:
            self._say_damage(repair(self._folder.metrics, until_step=step, until_epoch=epoch))
        self._stack.enter_context(self._progress)
        if self._tensorboard is not None:
            self._stack.enter_context(contextlib.closing(self._tensorboard))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

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
        values = {f"val_{name}": value for name, value in scores.items()}
        self._append(trainer, {**values, "seconds": seconds}, epoch=trainer.epoch + 1)
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
            ap=(scores or {}).get("ap"),
            ap50=(scores or {}).get("ap50"),
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

    def _say_damage(self, note: str) -> None:
        if note:
            _log.warning("note: %s", note)
            self._folder.log(note)

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
            self._say_damage(metrics.note)
            self._tables = _Tables(
                metrics=self._stack.enter_context(contextlib.closing(metrics)),
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

    def __exit__(self, *_: object) -> None: ...

    def after_step(self, *_: object) -> None: ...

    def after_validation(self, *_: object, seconds: float) -> None: ...

    def after_epoch(self, *_: object) -> None: ...

    def note(self, line: str) -> None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tables:
    """What has a column for each loss."""

    metrics: MetricsLog
    shown: EpochTable  # as wide as the terminal
    logged: EpochTable  # in log.txt


def log_columns(loss_names: Sequence[str]) -> tuple[str, ...]:
    """The columns of metrics.csv."""
    losses = (f"loss_{name}" for name in loss_names)
    first = ("step", "epoch", "lr", "loss")
    speed = ("images_per_second", "waiting_share", "seconds")
    return (*first, *losses, "grad_norm", *speed, *(f"val_{name}" for name in VALIDATED))


class TensorBoardLog:
    """Scalars of a run; events after the resumed step are purged.

    Raises ConfigError where the package is missing, CheckpointError where it cannot write.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        try:
            self._writer = SummaryWriter(str(folder), purge_step=first_step)
        except OSError as error:
            raise cannot_write(folder, error) from error

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
    """Lines of equal columns, one for each part of the loss if they fit into `width` characters."""

    def __init__(self, parts: Sequence[str], *, width: int) -> None:
        self._parts = tuple(parts)
        if len(self.header()) > width:
            self._parts = ()
        self._lines = 0

    def header(self) -> str:
        return self._line("epoch", "lr", "loss", *self._parts, "AP", "AP50", "img/s", "wait")

    def lines(self, figures: EpochFigures) -> list[str]:
        """The line of an epoch, with the header before it from time to time."""
        line = self._line(
            f"{figures.epoch}/{figures.epochs}",
            f"{figures.learning_rate:.1e}",
            _short(figures.losses.get("loss")),
            *(_short(figures.losses.get(f"loss_{name}")) for name in self._parts),
            _score(figures.ap),
            _score(figures.ap50),
            f"{figures.images_per_second:.1f}",
            f"{figures.waiting_share:.0%}",
        )
        header = [self.header()] if self._lines % _REPEAT_HEADER == 0 else []
        self._lines += 1
        return [*header, line]

    def _line(self, *cells: str) -> str:
        widths = (7, 7, 6, *(max(len(name), 6) for name in self._parts), 5, 5, 7, 4)
        return _GAP.join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _short(value: float | None) -> str:
    """Six characters at most for what is between 0.001 and 99999."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

"""What `train-heads` says before and after it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachedet.commands.tables import say
from cachedet.progress import count_of
from cachedet.store.files.durable import readable_nbytes

if TYPE_CHECKING:  # commands import what they need when they run: `--help` stays quick
    from cachedet.config.run import TrainConfig
    from cachedet.train import TrainReport

_FEW_EPOCHS = 10  # fewer teach strong heads little
_PAPER_SIZE = "note: {preset} has the paper's size, which is for GPUs; {preset}_tiny is for CPUs"
_LOW_AP, _FEW_STEPS = 0.1, 1000


def describe_epochs(settings: TrainConfig, changes: list[str], *, config: str) -> str:
    """How long it trains, who says so, and how to shorten that."""
    is_set = any(change.startswith("schedule.epochs=") for change in changes)
    source = "--set schedule.epochs" if is_set else config
    epochs, stopping = count_of(settings.schedule.epochs, "epoch"), settings.early_stopping
    if stopping is not None:
        ends = f"ends before where {stopping.metric} stands still (early_stopping)"
        return f"{epochs} at most, from {source}; {ends}"
    fewer = settings.schedule.epochs // 2
    if fewer < _FEW_EPOCHS:
        return f"{epochs}, from {source}"
    shorter = f"--set schedule.epochs={fewer}, or --set early_stopping.patience=5 with --val"
    return f"{epochs}, from {source}; shorter: {shorter}"


def hint_of_size(config: str, *, device: str) -> str:
    """Where a preset of the paper's size is to be trained on a CPU; else ""."""
    from cachedet.config.presets import preset_names
    from cachedet.device import choose_device

    if f"{config}_tiny" not in preset_names() or choose_device(device).type != "cpu":
        return ""
    return _PAPER_SIZE.format(preset=config)


def print_training(report: TrainReport) -> None:
    """What `train-heads` reached."""
    best = f", best AP {report.best_ap:.3f}" if report.best_ap is not None else ""
    early = " and stopped early" if report.stopped_early else ""
    now = len(report.losses)
    share = "" if now == report.steps else f", {now} of them by this call"
    say(
        f"{report.run}: {report.parameters / 1e6:.2f} M parameters trained for "
        f"{count_of(report.steps, 'step')}{share}, {count_of(report.epochs, 'epoch')}{early}, in "
        f"{report.seconds:.0f} s ({report.seconds_per_epoch:.1f} s an epoch), at most "
        f"{readable_nbytes(report.peak_memory)} of memory{best}"
    )
    if report.best_ap is not None and report.best_ap < _LOW_AP and report.steps < _FEW_STEPS:
        say(f"AP is low after {report.steps} steps: more epochs (--set schedule.epochs=...) help")

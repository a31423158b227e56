"""What `sweep` prints for a person: a line as each trial ends, the best ones, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from cachedet.commands.tables import console, figure, name_cell, say, say_prose
from cachedet.progress import count_of, format_seconds
from cachedet.sweeping.parameters import short_key, short_value
from cachedet.sweeping.sweep_plan import figure_name

if TYPE_CHECKING:  # commands import what they need when they run: `--help` stays quick
    from cachedet.sweeping.sweep_results import FinalRun, SweepReport, TrialRecord

_MOST_ROWS = 10
_MOST_IMPORTANT = 5
_CONFIG = 24  # columns: names of presets fit, longer ones take more lines


def print_trial(trial: TrialRecord) -> None:
    """One line: how it ended, and what it was trained with."""
    epochs = count_of(trial.curve[-1][0] if trial.curve else 0, "epoch")
    if trial.state == "failed":
        say(f"trial {trial.number:>3}  failed: {trial.error}")
        return
    ended = "given up after" if trial.state == "pruned" else "trained for"
    say(
        f"trial {trial.number:>3}  AP {figure(trial.best_ap)}  {ended} {epochs}  "
        f"{trial.config}  {describe_values(trial.values)}"
    )


def describe_values(values: Mapping[str, Any]) -> str:
    """Keys by their last parts, numbers with three digits."""
    return "  ".join(f"{short_key(key)}={short_value(value)}" for key, value in values.items())


def print_sweep(report: SweepReport) -> None:
    """The best trials or the front, what mattered, the final runs, and the verdict."""
    _print_best(report)
    if report.importances:
        shares = list(report.importances.items())[:_MOST_IMPORTANT]
        named = ", ".join(f"{key} {share:.0%}" for key, share in shares)
        say_prose(f"What sets the good trials apart: {named}.")
    ended = (
        f"{report.count('complete')} trained, {report.count('pruned')} given up, "
        f"{report.count('failed')} failed"
    )
    say_prose(
        f"{count_of(len(report.trials), 'trial')} ({ended}) in {format_seconds(report.seconds)}"
        f"{_describe_speed(report)}; {report.choosing} images chose, {report.reporting} report."
    )
    for run in report.finals:
        _print_final(run)
    if report.verdict is not None:
        say_prose(report.verdict.describe())
    say(report.page)


def _print_best(report: SweepReport) -> None:
    is_front = len(report.objectives) > 1
    by_number = {trial.number: trial for trial in report.trials}
    complete = [trial for trial in report.trials if trial.objectives]
    shown = [by_number[number] for number in report.best]
    if not is_front:
        shown = sorted(complete, key=lambda trial: -trial.objectives[0])[:_MOST_ROWS]
    table = Table(title="the front" if is_front else "best trials", box=None, padding=(0, 1, 0, 0))
    for name in ("trial", *map(figure_name, report.objectives)):
        table.add_column(name, justify="right", no_wrap=True)
    if has_several := len({trial.config for trial in report.trials}) > 1:
        table.add_column("config", overflow="fold", max_width=_CONFIG)
    table.add_column("values", overflow="fold")
    for trial in shown:
        table.add_row(
            "default" if trial.number == 0 else str(trial.number),
            figure(trial.objectives[0]),
            *(f"{seconds:.1f}" for seconds in trial.objectives[1:]),
            *([name_cell(trial.config, most=400)] if has_several else []),
            name_cell(describe_values(trial.values), most=400),
        )
    if shown:
        console.print(table)


def _print_final(run: FinalRun) -> None:
    name = "default" if run.trial is None else f"trial {run.trial}"
    if run.error:
        say(f"final {name}, seed {run.seed}: failed: {run.error}")
        return
    say(f"final {name}, seed {run.seed}: AP {figure(run.ap)} on the held-out images  {run.run}")


def _describe_speed(report: SweepReport) -> str:
    speed = report.images_per_second
    if math.isnan(speed) or not speed:
        return ""
    processes = "one process" if report.parallel == 1 else f"{report.parallel} processes"
    return f", {speed:.0f} images/s by {processes}"

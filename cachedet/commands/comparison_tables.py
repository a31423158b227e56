"""What `compare` prints for a person: a row as each run ends, and the means over the seeds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table

from cachedet.commands.tables import (
    console,
    figure,
    make_table,
    name_cell,
    say,
    say_prose,
    span,
)
from cachedet.text import printable

if TYPE_CHECKING:  # commands import what they need when they run: `--help` stays quick
    from cachedet.comparison.results import CellResult
    from cachedet.comparison.summary import Group, Summary
    from cachedet.demo import DemoReport

# Fixed, so that rows printed one after another stand in line.
_WIDTHS = (5, 18, 7, 8, 8, 11, 8, 8)
_FLUSH_LEFT = (1, 2, 3)


def print_cell(cell: CellResult, number: int, total: int) -> None:
    """A row of 80 columns for a run that has ended, the `number`th; why it failed stands below."""
    named = [f"{number}/{total}", cell.key.heads, cell.key.mode, f"seed {cell.key.seed}"]
    if cell.has_failed:
        _print_row([*named, "failed"])
        say(f"failed: {cell.error}")
        return
    _print_row(
        [
            *named,
            f"AP {figure(cell.ap)}",
            span(cell.low, cell.high),
            f"{cell.seconds:,.0f} s",
            f"{_megabytes(cell.peak_memory)} MB",
        ]
    )


def print_summary(summary: Summary) -> None:
    """Means over the seeds, then what they allow to say."""
    from cachedet.comparison.summary import compare_groups
    from cachedet.comparison.verdicts import (
        describe_agreement,
        describe_best,
        describe_freezing,
        describe_partial,
        judge_difference,
    )

    table = Table(title="means over the seeds", box=None, padding=(0, 1, 0, 0))
    table.add_column("heads", no_wrap=True, overflow="ellipsis", max_width=20)
    table.add_column("mode", no_wrap=True)
    for name in ("AP", "least-most", "- tuned", "seeds", "train s", "MB", "GFLOP"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = ""
    for group in summary.groups:
        tuned = summary.find(group.heads, "tuned")
        is_other = tuned is not None and group.mode != "tuned"
        apart = compare_groups(group, tuned).difference.mean if tuned and is_other else math.nan
        name = "" if group.heads == shown else group.heads
        shown = group.heads
        table.add_row(name_cell(name, most=20), group.mode, *_means(group, apart))
    console.print(table)
    for line in (
        *describe_best(summary),
        *describe_freezing(summary),
        *describe_partial(summary),
    ):
        say_prose(line)
    differences = summary.compare("cached", "tuned")
    if len(differences) > 1:
        for difference in differences:
            say_prose(judge_difference(difference))
    if summary.compare("cached", "live"):
        say_prose("Cached against live:")
        for line in describe_agreement(summary):
            say_prose(line)
    for cell in summary.failed:
        say(f"failed: {cell.key.folder}: {cell.error}")


def print_demo(report: DemoReport) -> None:
    """The last screen of `demo`: three ways side by side, and where to look."""
    from cachedet.live.mode_names import mode_label

    table = make_table("frozen, partial and fine-tuned", "", "AP", "AP50", "s", "MB", left=("",))
    for cell in report.cells:
        label = "frozen, from the cache" if cell.key.mode == "cached" else mode_label(cell.key.mode)
        costs = f"{cell.seconds:,.0f}", _megabytes(cell.peak_memory)
        table.add_row(label, figure(cell.ap), figure(cell.ap50), *costs)
    console.print(table)
    extraction = report.cells[0].extraction_seconds
    say_prose(f"Equal for all: {report.conditions}.")
    say_prose(
        f"s: of training; extraction took {extraction:.0f} s, once for both that read the "
        "cache. MB: peak memory."
    )
    say(f"ground truth beside prediction (frozen): {report.sheet}")
    say(f"open {report.page} in a browser")


def _means(group: Group, apart: float) -> list[str]:
    if not group.cells:
        return ["-", "-", "-", "0", "-", "-", "-"]
    ap = group.ap
    return [
        figure(ap.mean),
        span(ap.least, ap.most) if ap.count > 1 else "-",
        figure(apart, signed=True),
        str(ap.count),
        f"{group.over_seeds('seconds').mean:,.0f}",
        _megabytes(group.peak_memory),
        f"{group.over_seeds('step_flops').mean / 1e9:.2f}",
    ]


def _print_row(texts: list[str]) -> None:
    row = Table.grid(padding=(0, 1, 0, 0))
    for number, width in enumerate(_WIDTHS):
        row.add_column(
            width=width,
            no_wrap=True,
            overflow="ellipsis",
            justify="left" if number in _FLUSH_LEFT else "right",
        )
    row.add_row(*map(printable, texts))
    console.print(row)


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f}"

"""What `compare` prints for a person: a row as each run ends, and the means over the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cachedet.commands.tables import (
    console,
    figure,
    make_table,
    say,
    say_prose,
    span,
)

if TYPE_CHECKING:  # commands import what they need when they run: `--help` stays quick
    from cachedet.comparison.cautions import Caution
    from cachedet.comparison.results import CellResult
    from cachedet.comparison.summary import Group, Summary
    from cachedet.demo import DemoReport

_ROW = 80  # columns of a row that can have them
_HEADS, _MODE, _SEED = 18, 10, 6  # columns that line up while the names are no longer
_COLUMNS = ("AP", "lowest", "highest", "against tuned", "seeds", "time s", "MB", "GFLOP")
_EXPLAINED = (
    "lowest, highest: of the seeds; of a single seed, its 95 % interval over the images. against "
    "tuned: AP minus that of the same heads fine-tuned, over the seeds that both have. time s: "
    "seconds of training. MB: peak memory. GFLOP: of a step and image."
)


def print_cell(cell: CellResult, number: int, total: int) -> None:
    """A row of 80 columns for a run that has ended, the `number`th; why it failed stands below.

    What finds no room in it gets two lines: no name is cut.
    """
    key = cell.key
    row = (
        f"{f'{number}/{total}':>5} {key.heads:<{_HEADS}} {key.mode:<{_MODE}} "
        f"{f'seed {key.seed}':<{_SEED}}"
    )
    if cell.has_failed:
        say(f"{row} failed")
        say(f"failed: {cell.error}")
        return
    figures = (
        f"AP {figure(cell.ap):<5} {span(cell.low, cell.high):>11} {f'{cell.seconds:,.0f} s':>7} "
        f"{f'{_megabytes(cell.peak_memory)} MB':>8}"
    )
    if len(row) + 1 + len(figures) <= _ROW:
        say(f"{row} {figures}")
    else:
        say(" ".join(row.split()))
        say(f"{figures:>{_ROW}}")


def print_summary(summary: Summary, cautions: Sequence[Caution] = ()) -> None:
    """Means over the seeds, why it may be too early to believe them, what they allow to say."""
    from cachedet.comparison.verdicts import (
        describe_agreement,
        describe_best,
        describe_freezing,
        describe_partial,
        judge_difference,
    )

    say("means over the seeds")
    for line in _table_lines(summary):
        say(line)
    say_prose(_EXPLAINED)
    for caution in cautions:
        say_prose(caution.text)
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

    table = make_table("three ways to train these heads", "", "AP", "AP50", "s", "MB", left=("",))
    for cell in report.cells:
        costs = f"{cell.seconds:,.0f}", _megabytes(cell.peak_memory)
        table.add_row(mode_label(cell.key.mode), figure(cell.ap), figure(cell.ap50), *costs)
    console.print(table)
    extraction = report.cells[0].extraction_seconds
    say_prose(f"Equal for all: {report.conditions}.")
    say_prose(
        "cached: all of the backbone frozen. s: of training; extraction took "
        f"{extraction:.0f} s, once for both that read the cache. MB: peak memory."
    )
    for caution in report.cautions:
        say_prose(caution.text)
    say(f"ground truth beside prediction ({mode_label(report.cells[0].key.mode)}): {report.sheet}")
    say(f"open {report.page} in a browser")


def _table_lines(summary: Summary) -> list[str]:
    """The columns' names, then heads on lines of their own above their modes."""
    from cachedet.comparison.summary import compare_groups

    rows: list[tuple[str, ...]] = [("", *_COLUMNS)]
    for group in summary.groups:
        tuned = summary.find(group.heads, "tuned")
        is_other = tuned is not None and group.mode != "tuned"
        apart = compare_groups(group, tuned).difference.mean if tuned and is_other else math.nan
        rows.append((f"  {group.mode}", *_means(group, apart)))
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    gap = "  " if first + sum(widths) + 2 * len(widths) <= _ROW else " "
    lines = [gap.join([row[0].ljust(first), *map(str.rjust, row[1:], widths)]) for row in rows]
    for heads in reversed(summary.heads):
        number = [group.heads for group in summary.groups].index(heads)
        lines.insert(number + 1, heads)
    return lines


def _means(group: Group, apart: float) -> list[str]:
    if not group.cells:
        return ["-", "-", "-", "-", "0", "-", "-", "-"]
    return [
        figure(group.ap.mean),
        *map(figure, group.ends),
        figure(apart, signed=True),
        str(group.ap.count),
        f"{group.over_seeds('seconds').mean:,.0f}",
        _megabytes(group.peak_memory),
        f"{group.over_seeds('step_flops').mean / 1e9:.2f}",
    ]


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f}"

"""Tables of a comparison's page: the means over seeds, and every run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cachedet.comparison.results import CellResult
from cachedet.comparison.summary import Comparison, Group, Spread, Summary, compare_groups
from cachedet.live.mode_names import mode_label
from cachedet.reporting.content import Cell, Row, Section, Table, Tone
from cachedet.reporting.figures import ABSENT, count, figure, rank_of, signed, signed_span, span

_COSTS = (  # column, figure of a run, unit, digits
    ("train, s", "seconds", 1, 0),
    ("extract, s", "extraction_seconds", 1, 0),
    ("memory, MB", "peak_memory", 1e6, 0),
    ("GFLOP a step", "step_flops", 1e9, 2),
    ("M trained", "parameters", 1e6, 2),
    ("cache, MB", "cache_nbytes", 1e6, 0),
)
_COST_COLUMNS = tuple(column for column, *_ in _COSTS)
JUDGEMENTS = {
    "nothing": "no seed in common",
    "one seed": "one seed: no verdict",
    "within": "within the spread",
    "beyond": "beyond the spread",
}


def summary_table(summary: Summary) -> Table:
    """A line for each mode of each heads."""
    rows = []
    for heads in summary.heads:
        rows.append(Row(name=heads, cells=(), group=True))
        groups = [group for group in summary.groups if group.heads == heads]
        tuned = summary.find(heads, "tuned")
        rows += [
            Row(name=mode_label(group.mode), cells=_group_cells(group, tuned)) for group in groups
        ]
    return Table(
        caption="Means over the seeds. Below AP: the least and the most of the seeds, or the 95 % "
        "interval over the images where there is one seed. Memory is the peak of any seed, "
        "GFLOP are those of a step and image, M trained are millions of parameters.",
        corner="Heads and mode",
        columns=("AP", "against fine-tuned", "seeds", *_COST_COLUMNS),
        rows=tuple(rows),
        dense=True,
    )


def verdict_tables(summary: Summary) -> tuple[Table, ...]:
    """Cached against fine-tuned, heads by heads; none where nothing was trained both ways."""
    comparisons = summary.compare("cached", "tuned")
    if not comparisons:
        return ()
    table = Table(
        caption="Cached against fine-tuned, by the seeds that both have. Below a difference: the "
        "least and the most, seed by seed. Seeds move: how far apart the runs of one mode lie.",
        corner="Heads",
        columns=("difference", "cached is", "cached", "fine-tuned", "seeds move", "seeds"),
        rows=tuple(Row(name=c.first.heads, cells=_verdict_cells(c)) for c in comparisons),
        dense=True,
    )
    return (table,)


def runs_section(cells: Sequence[CellResult]) -> Section:
    """Every run, and why some failed."""
    table = Table(
        caption="Below AP: its 95 % interval over the scored images, which does not cover the "
        "seed.",
        corner="Run",
        columns=("AP", "AP50", "AP75", *_COST_COLUMNS, "steps", "epochs"),
        rows=tuple(_run_row(cell, _run_cells(cell)) for cell in cells),
        sortable=True,
        dense=True,
    )
    failures = Table(
        caption="Runs that failed, and why.",
        corner="Run",
        columns=("Reason",),
        rows=tuple(_run_row(cell, (Cell(text=cell.error),)) for cell in cells if cell.has_failed),
        numeric=False,
    )
    tables = (table, failures) if failures.rows else (table,)
    return Section(key="runs", title="Every run", short="Runs", tables=tables)


def tone_of(comparison: Comparison) -> Tone:
    """Better or worse only where the difference is beyond what seeds do."""
    if comparison.judgement != "beyond":
        return ""
    return "better" if comparison.difference.mean > 0 else "worse"


def spread_note(difference: Spread) -> str:
    """The least and the most of several seeds."""
    return signed_span(difference.least, difference.most) if difference.count > 1 else ""


def _group_cells(group: Group, tuned: Group | None) -> tuple[Cell, ...]:
    unscored = len(group.cells) - group.ap.count
    lost = [
        f"{number} {word}"
        for number, word in ((len(group.failed), "failed"), (unscored, "without AP"))
        if number
    ]
    seeds = Cell(text=str(group.ap.count), note=", ".join(lost))
    if not group.cells:
        blank = Cell(text=ABSENT)
        return (blank, blank, seeds, *[blank] * len(_COSTS))
    means = {name: group.over_seeds(name).mean for _, name, _, _ in _COSTS}
    return (
        Cell(text=figure(group.ap.mean), note=span(*group.ends, absent="")),
        _against(group, tuned),
        seeds,
        *_costs({**means, "peak_memory": group.peak_memory}),
    )


def _against(group: Group, tuned: Group | None) -> Cell:
    if group.mode == "tuned":
        return Cell(text="itself", tone="faint")
    if tuned is None:
        return Cell(text=ABSENT)
    comparison = compare_groups(group, tuned)
    return Cell(
        text=signed(comparison.difference.mean),
        note=JUDGEMENTS[comparison.judgement],
        tone=tone_of(comparison),
    )


def _verdict_cells(comparison: Comparison) -> tuple[Cell, ...]:
    difference, tone = comparison.difference, tone_of(comparison)
    word = "cannot tell" if comparison.judgement == "within" else "no verdict"
    return (
        Cell(text=signed(difference.mean), note=spread_note(difference), tone=tone),
        Cell(text=tone or word, tone=tone),
        _shared_cell(comparison.first, comparison.first_ap, comparison.seeds),
        _shared_cell(comparison.second, comparison.second_ap, comparison.seeds),
        Cell(text=figure(comparison.spread)),
        Cell(text=str(len(comparison.seeds))),
    )


def _shared_cell(group: Group, ap: Spread, seeds: Sequence[int]) -> Cell:
    """AP over the shared seeds; of one seed with the interval over the images."""
    low, high = ap.least, ap.most
    if len(seeds) == 1:
        cell = group.of_seed(seeds[0])
        low, high = cell.low, cell.high
    return Cell(text=figure(ap.mean), note=span(low, high, absent=""))


def _run_row(cell: CellResult, cells: tuple[Cell, ...]) -> Row:
    note = f"{mode_label(cell.key.mode)}, seed {cell.key.seed}"
    return Row(name=cell.key.heads, note=note, cells=cells)


def _run_cells(cell: CellResult) -> tuple[Cell, ...]:
    if cell.has_failed:
        return (Cell(text="failed", tone="worse"), *[Cell(text=ABSENT)] * (len(_COSTS) + 4))
    interval = span(cell.low, cell.high, absent="")
    return (
        Cell(text=figure(cell.ap), note=interval, rank=rank_of(cell.ap)),
        Cell(text=figure(cell.ap50), rank=rank_of(cell.ap50)),
        Cell(text=figure(cell.ap75), rank=rank_of(cell.ap75)),
        *_costs(vars(cell)),
        Cell(text=count(cell.steps), rank=cell.steps),
        Cell(text=f"{cell.epochs:,.1f}", rank=cell.epochs),
    )


def _costs(values: Mapping[str, float]) -> list[Cell]:
    """What a mode does without is a dash."""
    return [
        Cell(text=ABSENT)
        if math.isnan(values[name]) or values[name] <= 0
        else Cell(text=f"{values[name] / unit:,.{digits}f}", rank=values[name])
        for _, name, unit, digits in _COSTS
    ]

"""Tables of a comparison's page: the means over seeds, and every run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cachedet.comparison.results import CellResult
from cachedet.comparison.summary import Comparison, Group, Spread, Summary, compare_groups
from cachedet.comparison.verdicts import MODE_NAMES
from cachedet.reporting.content import (
    ABSENT,
    Cell,
    Row,
    Section,
    Table,
    Tone,
    count,
    figure,
    signed,
)

_COSTS = (
    "train, s",
    "extract, s",
    "memory, MB",
    "GFLOP a step",
    "M trained",
    "cache, MB",
)
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
        tuned = summary.find(heads, "tuned")
        for mode in summary.modes:
            own = summary.find(heads, mode)
            if own is not None:
                rows.append(_group_row(own, tuned))
    return Table(
        caption="Means over the seeds. Below AP: the least and the most of the seeds, or the 95 % "
        "interval over the images where there is one seed. Memory is the peak of any seed, "
        "GFLOP are those of a step and image, M trained are millions of parameters.",
        corner="Heads and mode",
        columns=("AP", "against fine-tuned", "seeds", *_COSTS),
        rows=tuple(rows),
        dense=True,
    )


def verdict_tables(summary: Summary) -> tuple[Table, ...]:
    """Cached against fine-tuned, heads by heads; none where nothing was trained both ways."""
    found = summary.compare("cached", "tuned")
    if not found:
        return ()
    table = Table(
        caption="Cached against fine-tuned, by the seeds that both have. Below a difference: the "
        "least and the most, seed by seed. Seeds move: how far apart the runs of one mode lie.",
        corner="Heads",
        columns=("difference", "cached is", "cached", "fine-tuned", "seeds move", "seeds"),
        rows=tuple(Row(name=own.first.heads, cells=_verdict_cells(own)) for own in found),
        dense=True,
    )
    return (table,)


def tone_against(summary: Summary, own: Group) -> Tone:
    """Of a group against fine-tuned with the same heads."""
    tuned = summary.find(own.heads, "tuned")
    return "" if tuned is None or own is tuned else _tone(compare_groups(own, tuned))


def runs_section(cells: Sequence[CellResult]) -> Section:
    """Every run, and why some failed."""
    failed = [own for own in cells if own.has_failed]
    tables = [
        Table(
            caption="Below AP: its 95 % interval over the scored images, which does not cover "
            "the seed.",
            corner="Run",
            columns=("AP", "AP50", "AP75", *_COSTS, "steps", "epochs"),
            rows=tuple(
                Row(name=own.key.heads, note=_way(own), cells=_run_cells(own)) for own in cells
            ),
            sortable=True,
            dense=True,
        )
    ]
    if failed:
        tables.append(
            Table(
                caption="Runs that failed, and why.",
                corner="Run",
                columns=("Reason",),
                rows=tuple(
                    Row(name=own.key.heads, note=_way(own), cells=(Cell(text=own.error),))
                    for own in failed
                ),
                numeric=False,
            )
        )
    return Section(key="runs", title="Every run", short="Runs", tables=tuple(tables))


def _group_row(own: Group, tuned: Group | None) -> Row:
    unscored = len(own.cells) - own.ap.count
    lost = [
        f"{number} {word}"
        for number, word in ((len(own.failed), "failed"), (unscored, "without AP"))
        if number
    ]
    seeds = Cell(text=str(own.ap.count), note=", ".join(lost))
    if not own.cells:
        blank = Cell(text=ABSENT)
        return Row(name=MODE_NAMES[own.mode], cells=(blank, blank, seeds, *[blank] * len(_COSTS)))
    mean = {
        name: own.over_seeds(name).mean
        for name in ("seconds", "extraction_seconds", "step_flops", "parameters", "cache_nbytes")
    }
    return Row(
        name=MODE_NAMES[own.mode],
        cells=(
            _ap_cell(own),
            _against(own, tuned),
            seeds,
            *_costs(**mean, peak_memory=own.peak_memory),
        ),
    )


def _verdict_cells(own: Comparison) -> tuple[Cell, ...]:
    apart, several = own.difference, len(own.seeds) > 1
    return (
        Cell(
            text=signed(apart.mean),
            note=f"{signed(apart.least)} to {signed(apart.most)}" if several else "",
            tone=_tone(own),
        ),
        Cell(text=_verdict(own), tone=_tone(own)),
        _shared_cell(own.first, own.first_ap, own.seeds),
        _shared_cell(own.second, own.second_ap, own.seeds),
        Cell(text=figure(own.spread)),
        Cell(text=str(len(own.seeds))),
    )


def _verdict(own: Comparison) -> str:
    if own.judgement == "beyond":
        return "better" if own.difference.mean > 0 else "worse"
    return "no verdict" if own.judgement in ("nothing", "one seed") else "cannot tell"


def _shared_cell(group: Group, ap: Spread, seeds: Sequence[int]) -> Cell:
    """AP over the shared seeds; of one seed with the interval over the images."""
    if len(seeds) != 1:
        return Cell(text=figure(ap.mean), note=_ends(ap.least, ap.most))
    cell = next(one for one in group.cells if one.key.seed == seeds[0])
    return Cell(text=figure(cell.ap), note=_ends(cell.low, cell.high))


def _run_cells(own: CellResult) -> tuple[Cell, ...]:
    if own.has_failed:
        return (Cell(text="failed", tone="worse"), *[Cell(text=ABSENT)] * (len(_COSTS) + 4))
    costs = _costs(
        seconds=own.seconds,
        extraction_seconds=own.extraction_seconds,
        step_flops=own.step_flops,
        parameters=own.parameters,
        cache_nbytes=own.cache_nbytes,
        peak_memory=own.peak_memory,
    )
    return (
        Cell(text=figure(own.ap), note=_ends(own.low, own.high), rank=_rank(own.ap)),
        Cell(text=figure(own.ap50), rank=_rank(own.ap50)),
        Cell(text=figure(own.ap75), rank=_rank(own.ap75)),
        *costs,
        Cell(text=count(own.steps), rank=own.steps),
        Cell(text=f"{own.epochs:,.1f}", rank=own.epochs),
    )


def _costs(
    *,
    seconds: float,
    extraction_seconds: float,
    peak_memory: float,
    step_flops: float,
    parameters: float,
    cache_nbytes: float,
) -> tuple[Cell, ...]:
    """In the order of `_COSTS`; what a mode does without is a dash."""
    return (
        _cost(seconds, 1, 0),
        _cost(extraction_seconds, 1, 0),
        _cost(peak_memory, 1e6, 0),
        _cost(step_flops, 1e9, 2),
        _cost(parameters, 1e6, 2),
        _cost(cache_nbytes, 1e6, 0),
    )


def _cost(value: float, unit: float, digits: int) -> Cell:
    if math.isnan(value) or value <= 0:
        return Cell(text=ABSENT)
    return Cell(text=f"{value / unit:,.{digits}f}", rank=value)


def _ap_cell(own: Group) -> Cell:
    ap = own.ap
    if ap.count != 1:
        return Cell(text=figure(ap.mean), note=_ends(ap.least, ap.most))
    cell = next(one for one in own.cells if not math.isnan(one.ap))
    return Cell(text=figure(ap.mean), note=_ends(cell.low, cell.high))


def _against(own: Group, tuned: Group | None) -> Cell:
    if own.mode == "tuned":
        return Cell(text="itself", tone="faint")
    if tuned is None:
        return Cell(text=ABSENT)
    found = compare_groups(own, tuned)
    return Cell(
        text=signed(found.difference.mean), note=JUDGEMENTS[found.judgement], tone=_tone(found)
    )


def _tone(found: Comparison) -> Tone:
    if found.judgement != "beyond":
        return ""
    return "better" if found.difference.mean > 0 else "worse"


def _ends(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"{low:.3f}–{high:.3f}"


def _way(own: CellResult) -> str:
    return f"{MODE_NAMES[own.key.mode]}, seed {own.key.seed}"


def _rank(value: float) -> float | None:
    return None if math.isnan(value) else value

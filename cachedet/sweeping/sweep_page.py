"""The page of a sweep: the verdict, what was tried, what mattered, and what to try next."""

from __future__ import annotations

import math
from datetime import date

from cachedet.comparison.summary import Spread
from cachedet.progress import count_of, format_seconds
from cachedet.reporting.content import (
    Cell,
    Headline,
    Report,
    Row,
    Section,
    Table,
    Tone,
    facts_section,
)
from cachedet.reporting.figures import (
    ABSENT,
    figure,
    rank_of,
    signed,
    signed_span,
    span,
    tracks_of,
)
from cachedet.sweeping.next_steps import next_steps
from cachedet.sweeping.parameters import short_key, short_value
from cachedet.sweeping.sweep_plan import Space
from cachedet.sweeping.sweep_results import SweepReport, TrialRecord, Verdict
from cachedet.sweeping.trial_charts import (
    front_chart,
    learning_chart,
    name_of,
    parallel_chart,
)
from cachedet.version import __version__

_TONES: dict[str, Tone] = {"better": "better", "worse": "worse"}
_ORDER = ("waiting", "running", "failed", "pruned", "complete")  # as a table sorts them
_STATES = {"complete": "trained", "pruned": "given up"}


def sweep_page(report: SweepReport, space: Space) -> Report:
    """Everything about the trials of a sweep, failed ones included."""
    default = next(iter(space.of_config))
    return Report(
        title=f"Is anything better than {default}?",
        standfirst=_standfirst(report),
        headlines=_headlines(report, default),
        sections=(
            _result_section(report),
            _next_section(report, space),
            *_front_section(report),
            _tried_section(report, space),
            _importance_section(report, space),
            _trials_section(report, space),
        ),
        last=(_facts_section(report),),
        version=__version__,
        written=date.today().isoformat(),
        kind="sweep",
        has_images=False,
    )


def _standfirst(report: SweepReport) -> str:
    """The verdict, or why there is none."""
    if report.verdict is not None:
        return report.verdict.describe()
    if report.interrupted_by is not None:
        return f"No verdict yet: {report.interrupted_by} came. The same command goes on."
    if report.winner is None:
        return "No verdict: no trial came to its end."
    return "No verdict: final runs failed. The same command tries them again."


def _headlines(report: SweepReport, default: str) -> tuple[Headline, ...]:
    """The winner and the default on images that chose nothing."""
    verdict = report.verdict
    if verdict is None:
        return ()
    sides: list[tuple[str, Spread]] = [(f"{default}, the default", verdict.default)]
    if verdict.difference is not None:
        sides.insert(0, (f"trial {report.winner}, the winner", verdict.winner))
    tracks = tracks_of([(spread.least, spread.mean, spread.most) for _, spread in sides])
    headlines = []
    for at, ((name, spread), track) in enumerate(zip(sides, tracks, strict=True)):
        against = _describe_difference(verdict) if at == 0 else ""
        headlines.append(
            Headline(
                run=name,
                value=figure(spread.mean),
                interval=span(spread.least, spread.most),
                interval_name=count_of(spread.count, "seed"),
                verdict=against,
                tone=_TONES.get(verdict.judgement, "") if against else "",
                track=track,
            )
        )
    return tuple(headlines)


def _describe_difference(verdict: Verdict) -> str:
    if verdict.difference is None:
        return ""
    return f"{signed(verdict.difference.value)} against the default: {verdict.judgement}"


def _result_section(report: SweepReport) -> Section:
    chose = f"{count_of(report.choosing, 'image')} chose the winner; the figures above are of "
    lead = (
        f"{count_of(len(report.trials), 'trial')} ({_describe_ends(report)}) in "
        f"{format_seconds(report.seconds)}. "
    )
    if report.verdict is None:
        lead += f"{count_of(report.choosing, 'image')} choose, {report.reporting} others report."
    else:
        lead += f"{chose}{report.reporting} others, after training again with new seeds."
    failed = tuple(f"{_name(run.trial)}, seed {run.seed}, failed: {run.error}"
                   for run in report.finals if run.error)  # fmt: skip
    return Section(
        key="result",
        title="The winner beside the default",
        short="Result",
        leads=(lead,),
        tables=_final_tables(report),
        notes=(
            *(f"{note[:1].upper()}{note[1:]}." for note in report.notes),
            *failed,
            "The best AP of the search is never the result: the best of many is partly luck.",
        ),
    )


def _describe_ends(report: SweepReport) -> str:
    """How the trials ended, those that did not included."""
    under_way = report.count("running")
    return (
        f"{report.count('complete')} trained to the end, {report.count('pruned')} given up, "
        f"{report.count('failed')} failed" + (f", {under_way} under way" if under_way else "")
    )


def _final_tables(report: SweepReport) -> tuple[Table, ...]:
    """A row a seed, a column a side, and the difference with its interval."""
    aps = {(run.trial, run.seed): run.ap for run in report.finals if not run.error}
    if not aps:
        return ()
    sides = sorted({trial for trial, _ in aps}, key=lambda trial: trial is None)
    rows = []
    for seed in sorted({seed for _, seed in aps}):
        of_seed = [aps.get((side, seed), math.nan) for side in sides]
        cells = [Cell(text=figure(ap)) for ap in of_seed]
        cells += [Cell(text=signed(of_seed[0] - of_seed[1]))] if len(sides) > 1 else []
        rows.append(Row(name=f"seed {seed}", cells=tuple(cells)))
    if report.verdict is not None:
        rows.append(_mean_row(report.verdict, sides=len(sides)))
    caption = "AP of the final runs on the images that chose nothing."
    if len(sides) > 1:
        caption += " Below the mean difference: its 95 % interval over images and seeds."
    table = Table(
        caption=caption,
        corner="Final runs",
        columns=(*map(_name, sides), *(("difference",) if len(sides) > 1 else ())),
        rows=tuple(rows),
    )
    return (table,)


def _mean_row(verdict: Verdict, *, sides: int) -> Row:
    gap = verdict.difference
    spreads = (verdict.default,) if sides == 1 else (verdict.winner, verdict.default)
    cells = [Cell(text=figure(each.mean), note=span(each.least, each.most)) for each in spreads]
    if sides > 1:
        tone = _TONES.get(verdict.judgement, "")
        cells.append(
            Cell(text=ABSENT)
            if gap is None
            else Cell(text=signed(gap.value), note=signed_span(gap.low, gap.high), tone=tone)
        )
    return Row(name="mean", cells=tuple(cells))


def _next_section(report: SweepReport, space: Space) -> Section:
    return Section(
        key="next",
        title="What to try next",
        short="Next",
        leads=next_steps(report, space) or ("Nothing in these trials asks for more.",),
    )


def _front_section(report: SweepReport) -> tuple[Section, ...]:
    if len(report.objectives) < 2:
        return ()
    charts = front_chart(report)
    lead = f"{count_of(len(report.best), 'trial')} of the front; the one of the best figure wins."
    return (
        Section(
            key="front",
            title="What more time buys",
            short="Front",
            leads=(lead if charts else "No trial came to its end.",),
            charts=charts,
        ),
    )


def _tried_section(report: SweepReport, space: Space) -> Section:
    charts = (*parallel_chart(report, space), *learning_chart(report))
    return Section(
        key="tried",
        title="What was tried",
        short="Tried",
        leads=() if charts else ("No trial got as far as a validation.",),
        charts=charts,
    )


def _importance_section(report: SweepReport, space: Space) -> Section:
    names = {
        space.name_of(config, parameter): name_of(space, config, parameter)
        for config, parameters in space.of_config.items()
        for parameter in parameters
    }
    most = max(report.importances.values(), default=0.0)
    rows = tuple(
        Row(
            name=names.get(key, key),
            cells=(Cell(text=f"{share:.0%}", bar=share / most if most else 0.0, rank=share),),
        )
        for key, share in report.importances.items()
    )
    table = Table(
        caption="Share of each parameter in what sets the better trials apart from the others "
        "(PED-ANOVA). Of few trials it is a guess.",
        corner="Parameter",
        columns=("share",),
        rows=rows,
    )
    why = "two objectives" if len(report.objectives) > 1 else "too few trials, or all alike"
    return Section(
        key="importance",
        title="What mattered",
        short="Importance",
        leads=() if rows else (f"Not known: {why}.",),
        tables=(table,) if rows else (),
    )


def _trials_section(report: SweepReport, space: Space) -> Section:
    keys = list(dict.fromkeys(key for trial in report.trials for key in trial.values))
    several = len(space.of_config) > 1
    table = Table(
        caption="AP is the best on the images that chose; of a trial that was given up, until then."
        " Seconds are those of its training steps.",
        corner="Trial",
        columns=(
            "ended", *(() if report.objectives[0] == "ap" else (report.figure,)), "AP",
            "epochs", "seconds", *(("config",) if several else ()), *map(short_key, keys),
        ),
        rows=tuple(
            Row(
                name=f"trial {trial.number}",
                note=_note(report, trial),
                cells=_trial_cells(report, trial, keys, several=several),
            )
            for trial in report.trials
        ),
        sortable=True,
        dense=True,
    )  # fmt: skip
    failures = Table(
        caption="Trials that failed, and why.",
        corner="Trial",
        columns=("Reason",),
        rows=tuple(
            Row(name=f"trial {trial.number}", cells=(Cell(text=trial.error),))
            for trial in report.trials
            if trial.state == "failed"
        ),
        numeric=False,
    )
    tables = (table, failures) if failures.rows else (table,)
    return Section(key="trials", title="Every trial", short="Trials", tables=tables)


def _trial_cells(
    report: SweepReport, trial: TrialRecord, keys: list[str], *, several: bool
) -> tuple[Cell, ...]:
    tone: Tone = "worse" if trial.state == "failed" else "faint" if trial.state == "pruned" else ""
    epochs = trial.curve[-1][0] if trial.curve else 0
    ended = Cell(
        text=_STATES.get(trial.state, trial.state), tone=tone, rank=_ORDER.index(trial.state)
    )
    cells = [ended]
    if report.objectives[0] != "ap":
        value = trial.objectives[0] if trial.objectives else math.nan
        cells.append(Cell(text=figure(value), rank=rank_of(value)))
    cells += [
        Cell(text=figure(trial.best_ap), rank=rank_of(trial.best_ap)),
        Cell(text=str(epochs), rank=epochs),
        Cell(text=figure(trial.seconds, digits=1), rank=rank_of(trial.seconds)),
    ]
    if several:
        cells.append(Cell(text=trial.config))
    for key in keys:
        value = trial.values.get(key, ABSENT)
        is_number = isinstance(value, int | float)
        text = value if isinstance(value, str) else short_value(value)
        cells.append(Cell(text=text, rank=float(value) if is_number else None))
    return tuple(cells)


def _note(report: SweepReport, trial: TrialRecord) -> str:
    words = ["the default"] if trial.number == 0 else []
    words += ["the winner"] if trial.number == report.winner else []
    if len(report.objectives) > 1 and trial.number in report.best:
        words.append("of the front")
    return ", ".join(words)


def _facts_section(report: SweepReport) -> Section:
    facts = [
        (key, short_value(report.settings[key]))
        for key in ("objective", "sampler", "pruner", "holdout", "seed", "optuna")
        if key in report.settings
    ]
    facts += [
        (f"space of {config}", ", ".join(texts) or ABSENT) for config, texts in report.space.items()
    ]
    caption = "What the sweep is of; settings.json holds all."
    return facts_section(facts, caption=caption, column="In this sweep")


def _name(trial: int | None) -> str:
    return "default" if trial is None else f"trial {trial}"

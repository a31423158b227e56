"""Many trainings from one cache: a search over what a config has, and an honest verdict."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from cachedet.errors import InputError
from cachedet.outputs import Kind, require_outside_stores, write_file
from cachedet.progress import count_of, format_seconds
from cachedet.reporting.rendering import render_markdown, render_page
from cachedet.store.files.durable import encode_json, write_durably
from cachedet.sweeping.finals import Finals
from cachedet.sweeping.search import Search
from cachedet.sweeping.sweep_folder import SweepFolder
from cachedet.sweeping.sweep_page import sweep_page
from cachedet.sweeping.sweep_plan import SweepConfig, require_sensible
from cachedet.sweeping.sweep_results import State, SweepReport, TrialRecord
from cachedet.sweeping.task import SweepTask
from cachedet.training.stopping import StopSignals

if TYPE_CHECKING:
    from cachedet.sweeping.study import Draw, SweepStudy

_log = logging.getLogger("cachedet.sweep")
_STATES: dict[str, State] = {
    "COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running",
    "WAITING": "waiting",
}  # fmt: skip

OnTrial = Callable[[TrialRecord], None]
"""Called with each trial that has ended."""


def sweep(config: SweepConfig, *, on_trial: OnTrial | None = None) -> SweepReport:
    """Search, train winner and default with new seeds, and compare them on held-out images.

    Called again with the same config it goes on; with more `trials` or `budget` it adds trials.

    Raises:
        InputError, ConfigError: the options do not fit together or to the stores, the folder is of
            another sweep or in use, or no trial came to its end.
        CheckpointError: the two stores do not fit together.
        StoreError: a store is incomplete or damaged.
    """
    require_outside_stores(config.out)
    require_sensible(config)
    _require_optuna()
    from cachedet.sweeping.study import OPTUNA, SweepStudy

    task, folder = SweepTask.of(config), SweepFolder(config.out)
    with folder.owned():
        folder.require_same(task.settings(optuna=OPTUNA))
        study = SweepStudy(folder.journal, task.rules, task.space)
        study.begin_with(task.default, task.defaults())
        for note in task.notes():
            _log.warning("note: %s", note)
        _log.info(_describe_work(config, begun=len(study.drawn())))

        def on_end(number: int) -> None:
            if on_trial is not None:
                on_trial(_record(folder, study, number))

        finals = None
        with StopSignals() as signals:
            interrupted_by = Search(task, folder, study, on_end).run(signals)
            winner = study.winner()
            if interrupted_by is None and winner is not None:
                finals = _make_finals(task, folder, study.values_of(winner))
                interrupted_by = finals.run(signals)
        report = _report(task, folder, study, finals, interrupted_by)
        _write(report, task, folder)
    if winner is None and interrupted_by is None:
        raise InputError(_describe_failure(report))
    return report


def _write(report: SweepReport, task: SweepTask, folder: SweepFolder) -> None:
    """The JSON, and the page as HTML and as Markdown."""
    write_durably(folder.results, encode_json(report.to_json()))
    page = sweep_page(report, task.space)
    html, markdown = render_page(page, curves=(), sheet=None), render_markdown(page)
    write_file(report.page, html.encode("utf-8"), kind=Kind.PAGE)
    write_file(report.page.with_suffix(".md"), markdown.encode("utf-8"), kind=Kind.MARKDOWN)


def _require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise InputError(f"sweep needs Optuna ({error}); pip install 'cachedet[sweep]'") from error


def _describe_work(config: SweepConfig, *, begun: int) -> str:
    """What is to come, so that nobody takes the search for all of it."""
    finals = f"then the winner and the default with {count_of(config.final_seeds, 'new seed')} each"
    if config.trials is None:
        return f"trials for {format_seconds(config.budget or 0.0)}, {finals}"
    if begun >= config.trials:
        return f"{count_of(begun, 'trial')} are here already; a larger --trials adds some"
    return f"{count_of(config.trials, 'trial')}, {finals}"


def _make_finals(task: SweepTask, folder: SweepFolder, winner: Draw) -> Finals:
    config = task.configured(winner.config, winner.values)
    return Finals(task, folder, winner=winner.number, config=config)


def _describe_failure(report: SweepReport) -> str:
    """Why there is no winner, once."""
    failed = [trial for trial in report.trials if trial.state == "failed"]
    if not failed:
        return (
            f"all {count_of(len(report.trials), 'trial')} were given up before their end; use "
            "--pruner none in another --out, or more --trials in this one"
        )
    others = len({trial.error for trial in failed}) - 1
    where = report.out / "sweep.json"
    more = f" (and {count_of(others, 'other reason')}: {where})" if others else ""
    return (
        f"no trial came to its end: {len(failed)} of {len(report.trials)} failed, the first, the "
        f"default, because: {failed[0].error.rstrip('. ')}{more}. They stay recorded: try another "
        "config, or values nearer to one that trains, in another --out"
    )


def _report(
    task: SweepTask,
    folder: SweepFolder,
    study: SweepStudy,
    finals: Finals | None,
    interrupted_by: str | None,
) -> SweepReport:
    return SweepReport(
        out=folder.root,
        objectives=task.config.objective.names,
        space=task.space.describe(),
        trials=tuple(_record(folder, study, trial.number) for trial in study.drawn()),
        best=tuple(study.best()),
        winner=study.winner(),
        importances=study.importances(),
        choosing=len(task.split.choosing),
        reporting=len(task.split.reporting),
        finals=() if finals is None else finals.runs(),
        verdict=None if finals is None or interrupted_by is not None else finals.verdict(),
        seconds=study.seconds,
        parallel=task.config.parallel,
        settings=task.settings(optuna=study.version),
        notes=tuple(task.notes()),
        interrupted_by=interrupted_by,
    )


def _record(folder: SweepFolder, study: SweepStudy, number: int) -> TrialRecord:
    trial, draw = study.trials[number], study.values_of(number)
    attributes = trial.user_attrs
    return TrialRecord(
        number=number,
        state=_STATES[trial.state.name],
        config=draw.config,
        values=draw.values,
        objectives=tuple(trial.values or ()) if trial.state.name == "COMPLETE" else (),
        curve=tuple(study.curve_of(number)),
        seconds=float(attributes.get("seconds", math.nan)),
        images=float(attributes.get("images", math.nan)),
        error=str(attributes.get("error", "")),
        run=folder.trial(number),
    )

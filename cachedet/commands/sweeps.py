"""The command that searches over configs on one cache."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cachedet.commands.comparisons import load_heads, parse_seconds
from cachedet.commands.options import Json, Overrides, print_json
from cachedet.progress import tell
from cachedet.text import shell_line

if TYPE_CHECKING:  # commands import what they need when they run: `--help` stays quick
    from cachedet.sweeping.sweep_results import SweepReport

Params = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        help="What to search: KEY=log:3e-4..3e-3, KEY=0..0.5 or KEY=32,64,96; repeatable. "
        "Without it a space around the config's values.",
    ),
]


def sweep(
    configs: Annotated[
        list[str], typer.Argument(help="Presets or YAML files; the first is the default.")
    ],
    train: Annotated[str, typer.Option(help="Store to train on: a folder, or s3://...")],
    val: Annotated[str, typer.Option(help="Store to choose and to report on.")],
    out: Annotated[Path, typer.Option(help="Folder of the sweep, also to go on with it.")],
    trials: Annotated[int | None, typer.Option(min=1, help="In all calls together.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time of the search instead, such as 10m, 90s, 1h.")
    ] = None,
    params: Params = None,
    objective: Annotated[
        str, typer.Option(help="Such as AP, AP50, ar100, or AP,seconds for the front of both.")
    ] = "AP",
    parallel: Annotated[
        str, typer.Option(help="Processes at a time, or auto: a core each on a CPU.")
    ] = "1",
    holdout: Annotated[
        float, typer.Option(help="Share of the validation images that only report.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of the search and of its trainings.")] = 0,
    sampler: Annotated[str, typer.Option(help="tpe or random.")] = "tpe",
    pruner: Annotated[
        str | None, typer.Option(help="halving (the default), hyperband or none.")
    ] = None,
    overrides: Overrides = None,
    resamples: Annotated[int, typer.Option(min=1, help="For the interval.")] = 1000,
    as_json: Json = False,
) -> None:
    """Many trainings from one cache: search a config's values; say whether the winner is better.

    The winner and the default are trained with three new seeds and compared on images that chose
    nothing. Run again to go on, or with more --trials to add some.
    """
    from cachedet.commands.sweep_tables import print_sweep, print_trial
    from cachedet.sweep import sweep as run_sweep
    from cachedet.sweeping.sweep_plan import (
        SweepConfig,
        parse_objective,
        parse_parallel,
        parse_pruner,
        parse_sampler,
    )

    heads = load_heads(configs, [*(overrides or []), f"seed={seed}"])
    wanted = parse_objective(objective)
    config = SweepConfig(
        heads=heads,
        train=train,
        val=val,
        out=out,
        trials=trials,
        budget=None if budget is None else parse_seconds(budget),
        params=tuple(params or ()),
        fixed=tuple(change.partition("=")[0].strip() for change in overrides or []),
        objective=wanted,
        parallel=parse_parallel(parallel, next(iter(heads.values())).device),
        holdout=holdout,
        seed=seed,
        sampler=parse_sampler(sampler),
        pruner=parse_pruner(pruner, wanted),
        resamples=resamples,
    )
    report = run_sweep(config, on_trial=None if as_json else print_trial)
    if as_json:
        print_json(report.to_json())
    else:
        print_sweep(report)
    _leave(report)


def _leave(report: SweepReport) -> None:
    """End with the exit status that says whether all is there."""
    from cachedet.training.stopping import STOPPED_STATUS

    if report.interrupted_by is not None:
        tell(f"{report.interrupted_by}: saved; continue with")
        tell(f"  {shell_line(['cachedet', *sys.argv[1:]])}")
        raise typer.Exit(STOPPED_STATUS)
    if any(run.error for run in report.finals):
        tell("final runs failed, see above; the same command tries them again")
        raise typer.Exit(1)


COMMANDS = {"sweep": sweep}

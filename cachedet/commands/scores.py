"""Commands that score runs and detections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachedet.commands.options import (
    Classes,
    IgnoreClasses,
    Json,
    MergeClasses,
    Split,
    make_choice,
    print_json,
)
from cachedet.commands.score_tables import print_analysis, print_proposals
from cachedet.commands.tables import say
from cachedet.errors import InputError, UnwrittenError
from cachedet.outputs import Kind, require_file, require_local, write_file

if TYPE_CHECKING:
    from cachedet.evaluate import EvalReport, Questions

_HOW = (
    "give a run, `cachedet eval RUN`, files of any producer, "
    "`cachedet eval --detections FILE --annotations FILE`, or an exported model, "
    "`cachedet eval --model FILE --images DIR --annotations FILE`"
)


Truth = Annotated[
    Path | None,
    typer.Option(help="To score against, as `extract` takes them; for a run instead of its own."),
]


Resamples = Annotated[
    int | None,
    typer.Option(
        min=0, help="Of the bootstrap, for intervals (default: 1000 with --against, else none)"
    ),
]
Model = Annotated[
    Path | None, typer.Option(help="A file of `export` to score on --images, instead of a run.")
]


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="Run folder; none with --detections.")] = None,
    store: Annotated[str | None, typer.Option(help="To score on; default: its own.")] = None,
    detections: Annotated[
        Path | None, typer.Option(help="COCO results file of any producer, instead of a run.")
    ] = None,
    model: Model = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images, for --model.")] = None,
    annotations: Truth = None,
    split: Split = None,
    classes: Classes = None,
    ignore_classes: IgnoreClasses = None,
    merge_classes: MergeClasses = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Another run, or results file, on the same images: is it noise?"),
    ] = None,
    training: Annotated[
        str | None,
        typer.Option(help="Training store or annotation file; default: what the run noted."),
    ] = None,
    bins: Annotated[
        str | None,
        typer.Option(help="Edges of the bins of training annotations (default: 0,10,100,1000)"),
    ] = None,
    lvis: Annotated[
        bool, typer.Option("--lvis", help="LVIS v1 too; --annotations is an LVIS file.")
    ] = False,
    resamples: Resamples = None,
    proposals: Annotated[
        bool, typer.Option("--proposals", help="Recall of the RPN's proposals too.")
    ] = False,
    weights: Annotated[str | None, typer.Option(help="best or last (default: best)")] = None,
    views: Annotated[
        str | None,
        typer.Option(
            help="Of the store, such as base,hflip: their detections are merged (default: base)"
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file to write; a run also has its results.json.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Stage 3: COCO's figures of a run on a store or of files, errors, intervals, comparisons."""
    from cachedet.evaluate import Questions
    from cachedet.evaluation.analysis import DEFAULT_RESAMPLES
    from cachedet.evaluation.strata import parse_edges

    of_a_run = {
        "--store": store, "--weights": weights, "--views": views, "--device": device,
        "--proposals": proposals or None,
    }  # fmt: skip
    subjects = {"the run": run, "--detections": detections, "--model": model}
    _require_one_kind(subjects, of_a_run, images)
    _require_writable(out, [detections, annotations, against, training, model])
    questions = Questions(
        against=against,
        training=training,
        annotations=_with_split(annotations, split),
        choose=make_choice(classes, ignore_classes, merge_classes),
        lvis=lvis,
        edges=None if bins is None else parse_edges(bins),
        resamples=resamples if resamples is not None else DEFAULT_RESAMPLES if against else 0,
        proposals=proposals,
    )
    if run is not None:
        settings = {"weights": weights, "views": views, "device": device}
        report, unwritten = _score_run(run, store, questions, settings, quiet=as_json)
    elif model is not None:
        report, unwritten = _score_model(model, images, questions, quiet=as_json), None
    else:
        report, unwritten = _score_files(detections, questions, quiet=as_json), None
    _leave(report, out, as_json=as_json)
    if unwritten is not None:
        raise unwritten


def _with_split(annotations: Path | None, split: str | None) -> Path | None:
    """Raises InputError where there is nothing that could have splits."""
    from cachedet.data.annotation_formats import with_split

    if split is not None and annotations is None:
        raise InputError(f"--split {split} is one of --annotations, which is missing; {_HOW}")
    return None if annotations is None else with_split(annotations, split)


def _leave(report: dict[str, Any], out: Path | None, *, as_json: bool) -> None:
    """Print it as JSON where that was asked for, and write it where it shall go."""
    if as_json:
        print_json(report)
    if out is None:
        return
    write_file(out, (json.dumps(report, indent=2) + "\n").encode(), kind=Kind.SCORES)
    if not as_json:
        say(out)


def _score_run(
    run: Path, store: str | None, questions: Questions, settings: dict[str, Any], *, quiet: bool
) -> tuple[dict[str, Any], UnwrittenError | None]:
    """The figures, and why they could not be written into the run folder."""
    from cachedet.config.run import make_eval_config
    from cachedet.evaluate import evaluate as run_evaluate

    if questions.against is not None and questions.against.is_file():
        raise InputError(
            f"--against expects a run folder where a run is scored, got the file "
            f"{questions.against}; compare files with --detections {run}/detections.json"
        )
    given = {name: value for name, value in settings.items() if value is not None}
    unwritten = None
    try:
        report = run_evaluate(run, store=store, config=make_eval_config(given), questions=questions)
    except UnwrittenError as error:
        report, unwritten = error.report, error
    if not quiet:
        _print_run(report)
    if not quiet and unwritten is None:
        say(report.results)
        say(report.coco_file)
    return report.to_json(), unwritten


def _print_run(report: EvalReport) -> None:
    print_analysis(report.analysis)
    if report.proposals is not None:
        print_proposals(report.proposals)
    if report.analysis.strata is None:
        say(
            "AP by training annotations is left out: the run was made before runs kept their "
            "numbers; name its training store or annotation file with --training"
        )


def _score_files(detections: Path | None, questions: Questions, *, quiet: bool) -> dict[str, Any]:
    from cachedet.evaluate import EVALUATOR
    from cachedet.evaluation.files import score_files
    from cachedet.evaluation.strata import DEFAULT_EDGES

    if detections is None or questions.annotations is None:
        raise InputError(f"--detections and --annotations are needed together; {_HOW}")
    if questions.against is not None and questions.against.is_dir():
        raise InputError(
            "--against expects a results file where --detections is one, got the folder "
            f"{questions.against}; of a run give {questions.against}/detections.json"
        )
    if questions.edges is not None and questions.training is None:
        raise InputError(
            "--bins needs training annotations: name the training store or annotation file with "
            "--training"
        )
    analysis = score_files(
        detections=detections,
        annotations=questions.annotations,
        against=questions.against,
        training=questions.training,
        edges=questions.edges or DEFAULT_EDGES,
        choose=questions.choose,
        lvis=questions.lvis,
        resamples=questions.resamples,
    )
    if not quiet:
        print_analysis(analysis)
    return {**analysis.to_json(), **EVALUATOR}


def _score_model(
    model: Path, images: Path | None, questions: Questions, *, quiet: bool
) -> dict[str, Any]:
    from cachedet.evaluate import EVALUATOR
    from cachedet.evaluation.strata import DEFAULT_EDGES
    from cachedet.exporting.model_scores import score_model

    if images is None or questions.annotations is None:
        raise InputError(f"--model needs --images and --annotations; {_HOW}")
    analysis = score_model(
        model,
        images=images,
        annotations=questions.annotations,
        against=questions.against,
        training=questions.training,
        edges=questions.edges or DEFAULT_EDGES,
        lvis=questions.lvis,
        resamples=questions.resamples,
        choose=questions.choose,
    )
    if not quiet:
        print_analysis(analysis)
    return {**analysis.to_json(), "model": str(model), **EVALUATOR}


def _require_one_kind(
    subjects: dict[str, Path | None], of_a_run: dict[str, Any], images: Path | None
) -> None:
    """Raises InputError where none or several kinds of scoring are asked for."""
    asked = {name: path for name, path in subjects.items() if path is not None}
    if not asked:
        raise InputError(f"there is nothing to score: {_HOW}")
    if len(asked) > 1:
        both = " and ".join(f"{name} {path}" for name, path in asked.items())
        raise InputError(f"got both {both}; {_HOW}")
    given = [name for name, value in of_a_run.items() if value is not None]
    if "the run" not in asked and given:
        raise InputError(
            f"{', '.join(given)} cannot be used with {next(iter(asked))}: the file says what was "
            "found; leave it out, or give a run"
        )
    if images is not None and "--model" not in asked:
        raise InputError("--images are those that --model is scored on; leave them out")


def _require_writable(out: Path | None, inputs: list[Path | str | None]) -> None:
    """Raises InputError before hours of work; no input is written over (law L8)."""
    if out is None:
        return
    require_local(out)
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out expects a file in a folder that exists, got {out}")
    for path in inputs:
        if path is None or "://" in str(path):
            continue
        if Path(path).resolve() == out.resolve():
            raise InputError(f"--out {out} is one of the inputs; name another file")
    require_file(out, kind=Kind.SCORES)


COMMANDS = {"eval": evaluate}

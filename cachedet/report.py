"""What runs are worth, on one page: reads scored runs, analyses them, writes HTML beside data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from cachedet.errors import InputError, StoreError
from cachedet.evaluation.analysis import DEFAULT_RESAMPLES
from cachedet.evaluation.files import read_annotations_of, truth_of_classes
from cachedet.outputs import Kind, require_file, require_local, write_file
from cachedet.progress import StageProgress
from cachedet.reporting.class_sections import annotation_section, class_section
from cachedet.reporting.content import Report
from cachedet.reporting.curve_sections import class_paths, curve_section, training_section
from cachedet.reporting.error_sections import confusion_section, error_section
from cachedet.reporting.image_sheet import Sheet, make_sheet, require_folder
from cachedet.reporting.provenance import bytes_per_image, provenance_section, spared_passes
from cachedet.reporting.recorded import describe_oddities, recorded_rows
from cachedet.reporting.rendering import render_markdown, render_page
from cachedet.reporting.run_analysis import RunAnalysis, RunInput, analyse_runs
from cachedet.reporting.scored_run import ScoredRun, read_detections, read_runs
from cachedet.reporting.scores_sections import describe_annotations, make_headlines, result_section
from cachedet.store.reader import FeatureStore
from cachedet.structures import Annotations
from cachedet.training.run_folder import RunFolder
from cachedet.version import __version__

_RECORDED = ("lvis", "lvis_masks", "proposals")  # of results.json, in report.json too


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportFiles:
    """What was written, and what the JSON file holds."""

    html: Path
    markdown: Path
    json: Path
    images: int  # shown
    unreadable: tuple[str, ...]  # why images are missing
    content: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        files = {"html": str(self.html), "markdown": str(self.markdown), "json": str(self.json)}
        return {**self.content, "files": files}


def report(
    runs: Sequence[Path],  # folders that `cachedet eval` has been through
    *,
    names: Sequence[str] | None = None,  # what the page calls them; None: by their folders
    store: Path | str | None = None,  # the ground truth; None: the store each run was scored on
    images: Path | None = None,  # folder of the image files; None: a page without images
    out: Path | None = None,  # HTML file, .md and .json beside it; None: report.html in runs[0]
    max_images: int = 24,  # how many of the best, and of the worst
    resamples: int = DEFAULT_RESAMPLES,  # of the bootstrap
    seed: int = 0,
) -> ReportFiles:
    """Write a page about runs that were scored on the same images; the first is compared with.

    Raises:
        CheckpointError: no such run.
        InputError: a run that was not scored, other images, names that are not one for each, or a
            file that cannot be written.
        StoreError: a store that cannot be read.
    """
    target = _target(out, runs)
    if images is not None:
        require_folder(images)
    scored = read_runs(runs, names)
    stores = [_open_store(run, store) for run in scored]
    annotations = _same_annotations(
        scored, [_annotations_of(run, held) for run, held in zip(scored, stores, strict=True)]
    )
    inputs = [
        RunInput(
            name=run.name,
            table=read_detections(run, annotations),
            training_boxes=run.training_boxes,
        )
        for run in scored
    ]
    analyses = analyse_runs(annotations, inputs, resamples=resamples, seed=seed)
    sheet = None
    if images is not None:
        wanted = min(2 * max_images, len(annotations))
        with StageProgress("images", total=wanted, unit="images") as progress:
            sheet = make_sheet(
                annotations, analyses, images=images, most=max_images, on_done=progress.advance
            )
    page = _lay_out(scored, stores, annotations, analyses, resamples=resamples)
    content = _content(scored, stores, analyses, resamples=resamples, seed=seed)
    return _write(target, page, content, analyses, sheet)


def _target(out: Path | None, runs: Sequence[Path]) -> Path:
    if not runs:
        raise InputError("a report needs a run folder or more")
    target = RunFolder.open(runs[0]).root / "report.html" if out is None else out
    require_local(target)
    if target.suffix.lower() not in (".html", ".htm"):
        raise InputError(
            f"--out expects a file that ends in .html, got {target}; the Markdown and JSON are "
            "written beside it under the same name"
        )
    for path, kind in _files_of(target):
        require_file(path, kind=kind)
    return target


def _files_of(target: Path) -> list[tuple[Path, Kind]]:
    """HTML, Markdown and JSON."""
    return [
        (target, Kind.PAGE),
        (target.with_suffix(".md"), Kind.MARKDOWN),
        (target.with_suffix(".json"), Kind.REPORT),
    ]


def _open_store(run: ScoredRun, store: Path | str | None) -> FeatureStore:
    """Open the store whose ground truth the run was scored against."""
    try:
        return FeatureStore.open(run.store if store is None else store)
    except StoreError as error:
        if store is not None:
            raise
        raise StoreError(
            f"{run.folder} was scored on {run.store}, which cannot be opened: {error}. If it has "
            "moved, or needs credentials, which are never kept, give its location with --store"
        ) from error


def _annotations_of(run: ScoredRun, store: FeatureStore) -> Annotations:
    """The boxes that the run was scored against: the store's, or those of an annotation file."""
    held, categories = store.annotations, run.checkpoint.categories
    if run.annotations is None:
        _require_same_truth(run, store)
        where = str(store.location)
        truth = truth_of_classes(held, categories, store=where, run=f"{run.folder} ")
        return truth.annotations
    try:
        path = Path(run.annotations)
        truth = read_annotations_of(held, path, categories=categories, choose=run.choose)
        return truth.annotations
    except InputError as error:
        raise InputError(
            f"{run.folder} was scored against {run.annotations}, which cannot be used now: "
            f"{error}. Score the run again with `cachedet eval {run.folder} --store {run.store}`"
        ) from error


def _require_same_truth(run: ScoredRun, store: FeatureStore) -> None:
    """Raises InputError where the store was relabelled since the run was scored."""
    recorded, now = run.results.get("truth_digest"), store.manifest.truth_digest
    if isinstance(recorded, str) and recorded != now:
        raise InputError(
            f"{run.folder} was scored on other labels than {store.location} has: {recorded[:12]} "
            f"then, {now[:12]} there. It was relabelled since, or is another store; score the run "
            f"again with `cachedet eval {run.folder} --store {store.location}`"
        )


def _same_annotations(runs: Sequence[ScoredRun], gt: Sequence[Annotations]) -> Annotations:
    """The ground truth that all runs share. Raises InputError."""
    for run, other in zip(runs[1:], gt[1:], strict=True):
        what = _difference(gt[0], other)
        if what:
            raise InputError(
                f"{runs[0].name} and {run.name} were scored on different {what} "
                f"({_scored_on(runs[0])}: {len(gt[0])} images, {_scored_on(run)}: "
                f"{len(other)}); side by side, runs need the same images and boxes: score "
                "both on the same data, or write a report of each"
            )
    return gt[0]


def _scored_on(run: ScoredRun) -> str:
    return run.store if run.annotations is None else f"{run.store} with {run.annotations}"


def _difference(one: Annotations, other: Annotations) -> str:
    if one.categories != other.categories:
        return "classes"
    if not np.array_equal(one.image_ids, other.image_ids):
        return "images"
    fields = ("offsets", "boxes", "labels", "crowd")
    is_same = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in fields)
    return "" if is_same else "boxes"


def _lay_out(
    runs: Sequence[ScoredRun],
    stores: Sequence[FeatureStore],
    annotations: Annotations,
    analyses: Sequence[RunAnalysis],
    *,
    resamples: int,
) -> Report:
    names = [run.name for run in runs]
    oddities = (describe_oddities(run.name, run.results) for run in runs)
    return Report(
        title=" against ".join(names) if len(names) < 4 else f"{len(names)} runs side by side",
        standfirst=f"{describe_annotations(annotations)}, scored on {stores[0].location}",
        headlines=make_headlines(analyses),
        sections=(
            result_section(
                analyses,
                resamples=resamples,
                recorded=recorded_rows([run.results for run in runs]),
                oddities=list(filter(None, oddities)),
            ),
            class_section(analyses),
            annotation_section(analyses),
            error_section(analyses),
            confusion_section(analyses),
            curve_section(analyses),
            training_section(runs),
        ),
        last=(provenance_section(runs, stores),),
        version=__version__,
        written=date.today().isoformat(),
    )


def _content(
    runs: Sequence[ScoredRun],
    stores: Sequence[FeatureStore],
    analyses: Sequence[RunAnalysis],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """report.json: every figure of the page."""
    return {
        "cachedet": __version__,
        "resamples": resamples,
        "seed": seed,
        "runs": [
            {
                "name": run.name,
                "run": str(run.folder),
                "store": str(store.location),
                "store_fingerprint": store.manifest.fingerprint(),
                "weights_digest": run.checkpoint.manifest.weights_digest,
                "config": run.checkpoint.config.model_dump(mode="json"),
                "training_seconds": run.training_seconds,
                "bytes_per_image_and_view": bytes_per_image(store),
                "backbone_passes_spared_at_most": spared_passes(run),
                **analysis.to_json(),
                **{key: run.results[key] for key in _RECORDED if key in run.results},
            }
            for run, store, analysis in zip(runs, stores, analyses, strict=True)
        ],
    }


def _write(
    target: Path,
    page: Report,
    content: dict[str, Any],
    analyses: Sequence[RunAnalysis],
    sheet: Sheet | None,
) -> ReportFiles:
    files = ReportFiles(
        html=target,
        markdown=target.with_suffix(".md"),
        json=target.with_suffix(".json"),
        images=0 if sheet is None else len(sheet.images),
        unreadable=() if sheet is None else sheet.unreadable,
        content=content,
    )
    texts = (
        render_page(page, curves=class_paths(analyses), sheet=sheet),
        render_markdown(page),
        json.dumps(content, indent=1, allow_nan=False) + "\n",
    )
    for (path, kind), text in zip(_files_of(target), texts, strict=True):
        write_file(path, text.encode("utf-8"), kind=kind)
    return files

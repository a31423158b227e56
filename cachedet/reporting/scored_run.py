"""What a scored run left in its folder, read back and held against the store it was scored on."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cachedet.config.run import ClassChoice, make_class_choice
from cachedet.errors import CheckpointError, InputError
from cachedet.evaluation.detection_table import DetectionTable, read_results
from cachedet.evaluation.metrics import score_table
from cachedet.store.files.locations import shown
from cachedet.structures import Annotations
from cachedet.training.checkpoint import Checkpoint, load_checkpoint
from cachedet.training.run_folder import RunFolder, TrainingData, find_place
from cachedet.training.run_log import STAMP, find_stages, read_log

_BEGINS = ("started;", "resumed at step")  # first words of log.txt's line when training goes on
_LONGEST_LINE = 100_000  # of metrics.csv; the module csv takes fields of 131,072
_TOLERANCE = 1e-9  # of AP computed again from the same detections


@dataclass(frozen=True, kw_only=True)
class TrainingPoint:
    """One row of metrics.csv; None where the column is empty."""

    step: int
    loss: float | None
    val_ap: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredRun:
    """A run folder that `cachedet eval` has been through."""

    name: str  # what the page calls it
    folder: Path
    results: dict[str, Any]  # results.json
    store: str  # it was scored on: as noted or beside a moved run; no credentials
    checkpoint: Checkpoint
    config_text: str
    metrics: tuple[TrainingPoint, ...]
    trained_on: TrainingData | None  # None: not recorded
    stages: str | None  # of the backbone that learnt, as log.txt has it; None: not recorded
    training_seconds: float | None  # wall clock of log.txt, pauses left out; None: not recorded

    @property
    def annotations(self) -> str | None:
        """The file it was scored against, where that was not the store's own ground truth."""
        path = self.results.get("annotations")
        if not isinstance(path, str):
            return None
        return find_place(path, run=self.folder, noted_run=self.results.get("run"))

    @property
    def choose(self) -> ClassChoice:
        """The classes of that file that it was scored on. Raises ConfigError."""
        return make_class_choice(
            self.results.get("choose") or {}, where=str(RunFolder(self.folder).results)
        )

    @property
    def training_boxes(self) -> dict[int, int] | None:
        """Category id -> boxes to learn from: those that eval was given, else the run's own."""
        strata = self.results.get("strata")
        given = strata.get("training_boxes") if isinstance(strata, dict) else None
        if not isinstance(given, dict):
            return None if self.trained_on is None else self.trained_on.boxes
        try:
            return {int(category_id): int(number) for category_id, number in given.items()}
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{RunFolder(self.folder).results}: strata.training_boxes should hold counts by "
                f"category id ({error}); score the run again"
            ) from error


def read_runs(folders: Sequence[Path], names: Sequence[str] | None = None) -> tuple[ScoredRun, ...]:
    """All runs of a page, with names that differ: these, or those of the folders.

    Raises:
        CheckpointError: no run folder, or no checkpoint in it.
        InputError: a run that has not been scored, or is named twice; a damaged file; names that
            are not one for each run.
    """
    resolved = [folder.resolve() for folder in folders]
    for folder, path in zip(folders, resolved, strict=True):
        if resolved.count(path) > 1:
            raise InputError(f"the run {folder} is named more than once; name each run once")
    if names is None:
        names = _names(resolved)
    elif len(names) != len(folders) or len(set(names)) != len(names):
        raise InputError(
            f"names expects one for each run, all different, got {', '.join(map(repr, names))} for "
            f"{len(folders)} runs"
        )
    return tuple(_read_run(folder, name) for folder, name in zip(folders, names, strict=True))


def read_detections(run: ScoredRun, annotations: Annotations) -> DetectionTable:
    """The run's detections, whose AP must be that of results.json.

    Raises InputError where they do not fit the annotations, or are not what results.json was made
    of.
    """
    path = RunFolder(run.folder).detections
    table = read_results(path, annotations)
    ap = score_table(annotations, table).ap
    recorded = run.results.get("ap")
    is_same = recorded is None and math.isnan(ap)
    if isinstance(recorded, int | float):
        is_same = abs(ap - recorded) <= _TOLERANCE
    if not is_same:
        raise InputError(
            f"the detections in {path} have AP {ap:.6f} on this store, results.json says "
            f"{recorded}: the store is not the one the run was scored on, or one of the two files "
            "is of another scoring. Score it again: "
            f"`cachedet eval {run.folder} --store {run.store}`"
        )
    return table


def _read_run(root: Path, name: str) -> ScoredRun:
    folder = RunFolder.open(root)
    if not (folder.results.is_file() and folder.detections.is_file()):
        raise InputError(
            f"{root} has not been scored: a report needs the results.json and detections.json that "
            f"`cachedet eval {root} --store STORE` writes; run it first"
        )
    results = _read_object(folder.results)
    store = results.get("store")
    if not isinstance(store, str):
        raise InputError(
            f"{folder.results} does not say which store it was scored on, got {store!r}; score the "
            f"run again with `cachedet eval {root} --store STORE`"
        )
    return ScoredRun(
        name=name,
        folder=root,
        results=results,
        store=shown(find_place(store, run=root, noted_run=results.get("run"))),
        checkpoint=_any_checkpoint(folder),
        config_text=folder.config.read_text(encoding="utf-8", errors="replace"),
        metrics=read_metrics(folder.metrics),
        trained_on=TrainingData.read(folder),
        stages=find_stages(read_log(root)),
        training_seconds=_sum_sessions(root / "log.txt"),
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """Last parts of the paths, as many as it takes to tell them apart."""
    for parts in itertools.count(1):
        names = ["/".join(folder.parts[-parts:]) or str(folder) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("paths that differ have parts that differ")


def _any_checkpoint(folder: RunFolder) -> Checkpoint:
    """The best one, or the last where training ended before the first validation."""
    for path in (folder.best, folder.last):
        if path.is_file():
            return load_checkpoint(path)
    raise CheckpointError(
        f"{folder.root} holds no checkpoint: expected {folder.best} or {folder.last}; the report "
        "reads from it what the run was trained on"
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON in UTF-8: {error}; score the run again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} should hold an object, got a {type(content).__name__}")
    return content


def read_metrics(path: Path) -> tuple[TrainingPoint, ...]:
    """Rows of metrics.csv that can be read; a row that a crash cut short is left out."""
    if not path.is_file():
        return ()
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
    lines = [line for line in text.splitlines() if len(line) <= _LONGEST_LINE]
    rows = list(csv.DictReader(lines, quoting=csv.QUOTE_NONE))
    return tuple(
        TrainingPoint(step=int(step), loss=_number(row, "loss"), val_ap=_number(row, "val_ap"))
        for row in rows
        if (step := _number(row, "step")) is not None
    )


def _number(row: Mapping[str, str | None], column: str) -> float | None:
    try:
        value = float(row.get(column) or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _sum_sessions(path: Path) -> float | None:
    """Seconds between the first and the last line of each stretch of training."""
    stretches: list[list[datetime]] = []
    for stamped in STAMP.finditer(read_log(path.parent)):
        if stamped[2].startswith(_BEGINS):
            stretches.append([])
        if stretches:
            with suppress(ValueError):  # no date: a crash has left that
                stretches[-1].append(datetime.strptime(stamped[1], "%Y-%m-%d %H:%M:%S"))
    seconds = [max((times[-1] - times[0]).total_seconds(), 0.0) for times in stretches if times]
    return sum(seconds) if seconds else None

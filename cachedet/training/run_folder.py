"""The run folder: where each file of a run lies, and training.json, what the run learns from."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cachedet.data.sections import listed
from cachedet.errors import CheckpointError
from cachedet.store.files.durable import TEMPORARY_SUFFIX, encode_json, write_durably
from cachedet.store.files.folder_lock import sole_owner
from cachedet.store.files.locations import is_url, shown
from cachedet.store.reader import FeatureStore
from cachedet.structures import Annotations, CategoryMap
from cachedet.training.run_log import LOG, append_line, is_our_log, read_log, tells_of_start


class RunFolder:
    """Where each file of a run lies; tensorboard/ is there where it is asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.training = root / "training.json"  # see TrainingData
        self.metrics = root / "metrics.csv"
        self.results = root / "results.json"
        self.detections = root / "detections.json"
        self.best = root / "weights" / "best.pt"
        self.last = root / "weights" / "last.pt"
        self.previous = root / "weights" / "previous.pt"  # for when `last` is damaged
        self.lock = root / "train.lock"  # while a process trains
        self.tensorboard = root / "tensorboard"
        self.plots = root / "plots"

    @classmethod
    def create(cls, root: Path) -> RunFolder:
        """Make a new run folder, or begin again one whose start left nothing but its first files.

        Raises CheckpointError where another one exists already.
        """
        folder = cls(root)
        if root.exists() and not (root.is_dir() and folder.is_unused()):
            goes_on = ", or continue it with --resume" if folder.has_state() else ""
            raise CheckpointError(
                f"{root} exists already and is not empty; choose another --run{goes_on}"
            )
        folder.best.parent.mkdir(parents=True, exist_ok=True)
        folder.plots.mkdir(exist_ok=True)
        return folder

    @classmethod
    def open(cls, root: Path) -> RunFolder:
        """Open a run that was started before. Raises CheckpointError where there is none."""
        folder = cls(root)
        try:
            is_run = folder.config.is_file()
        except OSError as error:
            raise _cannot_read(folder.config, error) from error
        if not is_run:
            raise CheckpointError(
                f"{root} is not a run folder: it has no config.yaml; "
                "expected a folder that `cachedet train-heads --run` made"
            )
        return folder

    def require_run(self) -> None:
        """Raises CheckpointError where there is none to go on with."""
        if self.root.is_dir() and self.is_unused():
            raise CheckpointError(
                f"{self.root} holds no run yet; leave out --resume to begin one there"
            )
        self.open(self.root)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """One process trains here at a time. A folder made for that and left empty goes again.

        Raises InputError while another one does, CheckpointError where the folder cannot be made.
        """
        is_new = not self.root.exists()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot make the run folder {self.root}: {error.strerror or error}; choose "
                "another --run"
            ) from error
        try:
            with sole_owner(self.lock, works="trains", instead="choose another --run"):
                yield
        finally:
            if is_new:
                with suppress(OSError):  # it holds a run
                    self.root.rmdir()

    def is_unused(self) -> bool:
        """Whether it is empty, or all in it is of a start that ended before anything was saved."""
        try:
            entries = {entry.name: entry for entry in _entries(self.root)}
        except OSError as error:
            raise _cannot_read(self.root, error) from error
        entries.pop(self.lock.name, None)
        folders = {path.name for path in (self.best.parent, self.plots)}
        files = {LOG, self.config.name, self.training.name}
        for entry in entries.values():
            if entry.name in files:
                is_of_start = entry.is_file(follow_symlinks=False)
            elif entry.name == self.metrics.name:
                is_of_start = entry.is_file(follow_symlinks=False) and self._is_first_epoch()
            else:
                is_of_start = entry.is_dir(follow_symlinks=False) and self._is_of_start(entry)
            if not is_of_start:
                return False
        if entries.keys() <= folders:
            return not any(os.listdir(entry) for entry in entries.values())
        return self._is_begun()

    def is_begun(self) -> bool:
        """Whether a start that ended before anything was saved left it."""
        return self.root.is_dir() and self.is_unused() and self._is_begun()

    def _is_of_start(self, folder: os.DirEntry[str]) -> bool:
        """Whether a start can have made all that is in this folder."""
        endings = {
            self.best.parent.name: re.compile(rf".*\.pt\..*{re.escape(TEMPORARY_SUFFIX)}"),
            self.tensorboard.name: re.compile(r"events\.out\.tfevents\..*"),
            self.plots.name: re.compile(r"(?!)"),  # nothing
        }
        pattern = endings.get(folder.name)
        return pattern is not None and all(
            pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            for entry in _entries(folder)
        )

    def _is_first_epoch(self) -> bool:
        """Whether metrics.csv has no row that a run could have after its first checkpoint."""
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        if not "".join(lines[:1]).startswith("step,epoch"):
            return not lines
        return all(line.split(",")[1:2] in ([], ["0"]) for line in lines[1:])

    def _is_begun(self) -> bool:
        """Only log.txt tells a config.yaml of ours from one that a person has put there."""
        if (self.root / LOG).is_symlink():
            return False
        log = read_log(self.root)
        if not is_our_log(log) or (self.config.exists() and not tells_of_start(log)):
            return False
        with suppress(CheckpointError):
            return not self.training.exists() or TrainingData.read(self) is not None
        return False

    def has_state(self) -> bool:
        """Whether there is a checkpoint to go on from, whole or not."""
        return self.last.exists() or self.previous.exists()

    def write_config(self, text: str) -> None:
        """Write config.yaml durably. Raises CheckpointError."""
        try:
            write_durably(self.config, text.encode())
        except OSError as error:
            raise cannot_write(self.config, error) from error

    def weights(self, which: str) -> Path:
        """Path of the "best" or "last" checkpoint."""
        return {"best": self.best, "last": self.last}[which]

    def log(self, line: str) -> None:
        """Append one line with the wall-clock time to log.txt. Raises CheckpointError."""
        try:
            append_line(self.root, line)
        except OSError as error:
            raise cannot_write(self.root / LOG, error) from error


def _entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return [*found]


def noted_place(place: Path | str) -> str:
    """How a run notes where something lies: found from wherever it is read, no credentials."""
    text = str(place)
    return shown(text) if is_url(text) else os.path.abspath(text)


def find_place(noted: str, *, run: Path, noted_run: object) -> str:
    """Where it lies now: as noted or, where run and data were moved together, beside the run.

    `noted_run` is where the run lay when this was noted, `run` where it lies now.
    """
    if is_url(noted) or os.path.exists(noted) or not isinstance(noted_run, str):
        return noted
    if not (os.path.isabs(noted) and os.path.isabs(noted_run)):
        return noted
    moved = os.path.normpath(os.path.join(os.path.abspath(run), os.path.relpath(noted, noted_run)))
    return moved if os.path.exists(moved) else noted


def _cannot_read(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot read {path}: {error.strerror or error}; nothing was changed: repair the cause and "
        "run the same command again"
    )


def cannot_write(path: Path, error: OSError) -> CheckpointError:
    """What to tell the user when the system refuses to write into a run folder."""
    return CheckpointError(
        f"cannot write {path}: {error.strerror or error}; the states saved before are whole. Make "
        "room or repair the folder, then continue with --resume"
    )


def set_aside(path: Path) -> Path:
    """Rename a damaged file to X.damaged or, where that is there, X.damaged-2 and so on.

    Returns the new path. Raises CheckpointError.
    """
    names = (f"{path.name}.damaged{'' if n == 1 else f'-{n}'}" for n in itertools.count(1))
    aside = next(path.with_name(name) for name in names if not os.path.lexists(path.parent / name))
    try:
        return path.rename(aside)
    except OSError as error:
        raise cannot_write(aside, error) from error


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a run learns from: a store in numbers."""

    store: str  # where it lay, without credentials
    fingerprint: str
    truth: str  # digest of its boxes and classes
    images: int
    categories: CategoryMap
    boxes: dict[int, int]  # category id -> boxes to learn from; crowds are none
    validation: str = ""  # digest of the boxes and classes it is validated on
    validation_store: str = ""  # where that lay; "": validated on none, or not noted
    run: str = ""  # where the run lay then, see find_place
    relabelled: tuple[tuple[int, str], ...] = ()  # until which step it saw which other truth

    @classmethod
    def of(
        cls,
        store: FeatureStore,
        *,
        validation: FeatureStore | None = None,
        run: Path | None = None,
    ) -> TrainingData:
        return cls(
            store=noted_place(store.location),
            fingerprint=store.manifest.fingerprint(),
            truth=store.manifest.truth_digest,
            images=len(store),
            categories=store.annotations.categories,
            boxes=count_annotations(store.annotations),
            validation="" if validation is None else validation.manifest.truth_digest,
            validation_store="" if validation is None else noted_place(validation.location),
            run="" if run is None else noted_place(run),
        )

    @classmethod
    def read(cls, folder: RunFolder) -> TrainingData | None:
        """None: the file is not there. Raises CheckpointError on another content."""
        if not folder.training.is_file():
            return None
        try:
            values = json.loads(folder.training.read_text(encoding="utf-8"))
            classes = values["classes"]
            return cls(
                store=shown(str(values["store"])),
                fingerprint=str(values["fingerprint"]),
                truth=str(values["truth_digest"]),
                images=int(values["images"]),
                categories=CategoryMap(
                    ids=tuple(int(entry["id"]) for entry in classes),
                    names=tuple(str(entry["name"]) for entry in classes),
                ),
                boxes={int(entry["id"]): int(entry["boxes"]) for entry in classes},
                validation=str(values["validation_truth_digest"]),
                validation_store=shown(str(values.get("validation_store", ""))),
                run=str(values.get("run", "")),
                relabelled=tuple(
                    (int(entry["until_step"]), str(entry["truth_digest"]))
                    for entry in values["relabelled"]
                ),
            )
        except (LookupError, OverflowError, RecursionError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder.training} is damaged ({error!r}): expected store, fingerprint, images "
                "and classes as `train-heads` writes them; remove the file, and name the training "
                "data with --training"
            ) from error

    def find_validation(self, folder: RunFolder) -> str:
        """Where the store that it was validated on lies now; "" where none is noted."""
        if not self.validation_store:
            return ""
        return find_place(self.validation_store, run=folder.root, noted_run=self.run or None)

    def changes_since(self, before: TrainingData | None) -> str:
        """How the boxes differ from those of a run's start, as far as its counts tell."""
        if before is None or before.boxes.keys() != self.boxes.keys():
            return "what it had before is not recorded"
        names = dict(zip(self.categories.ids, self.categories.names, strict=True))
        counts = [
            f"{names[number]}: {before.boxes[number]} boxes then, {now} now"
            for number, now in self.boxes.items()
            if now != before.boxes[number]
        ]
        return listed(counts) or "each class has as many boxes as before, but not the same ones"

    def after(self, before: TrainingData | None, *, step: int) -> TrainingData:
        """With the history of a run that goes on from `step`, where it learnt from `before`."""
        if before is None or step == 0:
            return self
        past = before.relabelled
        if before.truth != self.truth:
            past = (*past, (step, before.truth))
        return replace(self, relabelled=past)

    def write(self, folder: RunFolder) -> None:
        """Write it into the run folder; a run that goes on writes the same content again.

        Raises CheckpointError.
        """
        try:
            write_durably(folder.training, encode_json(self.to_json()))
        except OSError as error:
            raise cannot_write(folder.training, error) from error

    def to_json(self) -> dict[str, Any]:
        classes = zip(self.categories.ids, self.categories.names, strict=True)
        return {
            "store": self.store,
            "fingerprint": self.fingerprint,
            "truth_digest": self.truth,
            "images": self.images,
            "classes": [
                {"id": category_id, "name": name, "boxes": self.boxes[category_id]}
                for category_id, name in classes
            ],
            "validation_truth_digest": self.validation,
            "validation_store": self.validation_store,
            "run": self.run,
            "relabelled": [
                {"until_step": step, "truth_digest": truth} for step, truth in self.relabelled
            ],
        }


def count_annotations(training: Annotations) -> dict[int, int]:
    """Category id -> boxes to learn from; crowds are none."""
    counts = np.bincount(training.labels[~training.crowd], minlength=len(training.categories))
    return dict(zip(training.categories.ids, counts.tolist(), strict=True))

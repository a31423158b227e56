"""Stage 3: score a run on a store."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from cachedet.config.run import ALL_CLASSES, ClassChoice, EvalConfig
from cachedet.data.views import parse_views
from cachedet.errors import InputError, UnwrittenError
from cachedet.evaluation.analysis import Analysis, analyse, require_resamples
from cachedet.evaluation.detection_table import DetectionTable, has_masks, tabulate
from cachedet.evaluation.files import (
    TruthOfStore,
    read_annotations_of,
    read_counts,
    require_separate,
    truth_of_classes,
)
from cachedet.evaluation.metrics import ClassScore, CocoScores, coco_results
from cachedet.evaluation.proposals import ProposalReport
from cachedet.evaluation.strata import DEFAULT_EDGES, check_edges
from cachedet.evaluation.subject import Subject
from cachedet.outputs import Kind, require_ours, write_file
from cachedet.progress import count_of
from cachedet.store.files.locations import shown
from cachedet.store.reader import FeatureStore
from cachedet.structures import Annotations, Detections
from cachedet.training.run_folder import RunFolder, TrainingData, noted_place
from cachedet.version import __version__

_log = logging.getLogger("cachedet.evaluate")

_NAMED = 10  # skipped images in one note
EVALUATOR = {"evaluator": "cachedet, equal to pycocotools", "cachedet": __version__}
"""How JSON of scores ends, by which they are known as such; see cachedet/outputs.py."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked of a run beyond COCO's figures and the kinds of its errors."""

    against: Path | None = None  # another run, to compare detections on the same store with
    training: str | None = None  # an annotation file or store; None: what the run noted
    annotations: Path | None = None  # of any format, to score against instead of the store's
    choose: ClassChoice = ALL_CLASSES  # of `annotations`, and of a `training` file
    lvis: bool = False  # score as LVIS v1 too; `annotations` must be an LVIS file
    # Of the bins of training annotations; None: 0, 10, 100, 1000 where counts are known.
    edges: Sequence[int] | None = None
    resamples: int = 0  # of the bootstrap; 0: no intervals
    proposals: bool = False  # recall of the RPN's proposals too

    @property
    def chooses(self) -> bool:
        """Whether some classes are left out or merged."""
        return self.choose != ALL_CLASSES

    def describe(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "annotations": self.annotations and noted_place(self.annotations),
            "against": self.against and noted_place(self.against),
            **({"choose": self.choose.model_dump(mode="json")} if self.chooses else {}),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalReport:
    """Scores of a run, with the detections they were computed from."""

    analysis: Analysis
    proposals: ProposalReport | None
    views: tuple[str, ...]  # whose detections were merged
    detections: list[Detections]  # pixels of the images, in the order of the store's rows
    seconds: float
    results: Path | None  # results.json of the run; None: no run was scored
    coco_file: Path | None
    provenance: dict[str, Any]  # what was scored, as JSON

    @property
    def ap(self) -> float:
        """COCO's AP of boxes, 0..1; NaN where the store has none."""
        return self.scores.ap

    @property
    def ap50(self) -> float:
        """AP at IoU 0.5."""
        return self.scores.ap50

    @property
    def per_class(self) -> tuple[ClassScore, ...]:
        """AP of each class."""
        return self.scores.per_class

    @property
    def scores(self) -> CocoScores:
        return self.analysis.scores

    @property
    def mask_scores(self) -> CocoScores | None:
        """Where the detector has a mask head."""
        return self.analysis.mask_scores

    def to_json(self) -> dict[str, Any]:
        proposals = {"proposals": self.proposals.to_json()} if self.proposals is not None else {}
        return {
            **self.analysis.to_json(),
            **proposals,
            "views": list(self.views),
            "seconds": self.seconds,
            "detections": self.coco_file and str(self.coco_file),
            **self.provenance,
            **EVALUATOR,
        }

    def write(self, coco_rows: list[dict[str, Any]]) -> None:
        """Into the run folder, where there is one. Raises UnwrittenError, which holds it."""
        if self.coco_file is None or self.results is None:
            return
        text = json.dumps(self.to_json(), indent=2) + "\n"
        try:
            write_file(self.coco_file, json.dumps(coco_rows).encode(), kind=Kind.RESULTS)
            write_file(self.results, text.encode(), kind=Kind.SCORES)
        except InputError as error:
            raise UnwrittenError(str(error), report=self) from error


def evaluate(
    subject: Path | str | nn.Module,
    store: Path | str | FeatureStore | None = None,
    *,
    detector: nn.Module | None = None,
    config: EvalConfig | None = None,
    questions: Questions | None = None,
) -> EvalReport:
    """Score a run, or a detector as it is, on a store.

    Of a run, results.json and a COCO results file are written into its folder.

    Args:
        subject: run folder, or the detector itself.
        store: with every view that is asked for; a folder, a URL or an open store. None: the one
            that the run was validated on.
        detector: what `train` was given as an object; a copy of it gets the run's weights.
        config: views to merge, images at a time, device, and which weights of the run.
        questions: what is asked beyond COCO's figures.

    Raises:
        InputError: an unknown view, or a question that cannot be answered.
        UnwrittenError: the run folder cannot be written; it holds the report.
        CheckpointError: no such run, or its features are not those of the store.
        DetectorError: the object is no detector, or returns something else than detections.
        StoreError: the store lacks a view, is incomplete or damaged.

    Examples:
        >>> report = cachedet.evaluate("runs/first", "val.zarr")
        >>> report.ap, [score.name for score in report.per_class]
    """
    config, questions = config or EvalConfig(), questions or Questions()
    views = tuple(view.name for view in parse_views(config.views))
    _require_answerable(questions, views)
    features = FeatureStore.open(store) if store is not None else _open_own(subject)
    features.require_complete(views)
    of_run = partial(Subject.of_run, detector=detector)
    if isinstance(subject, nn.Module):
        scored = Subject.of_module(subject, features, config, views)
    else:
        scored = of_run(Path(subject), features, config, views)
    against, folder = questions.against, scored.folder
    other = None if against is None else of_run(against, features, config, views)
    _require_same_classes(scored, other)
    _require_replaceable(folder)
    noted = None if folder is None else TrainingData.read(folder)
    counts, source = _find_counts(questions, scored, noted)
    truth, started = _find_annotations(questions, scored), time.perf_counter()
    annotations = truth.annotations
    proposals = scored.recall_proposals(annotations) if questions.proposals else None
    detections = scored.detect("eval")
    table = _tabulate(annotations, detections)
    analysis = analyse(
        annotations,
        table,
        federated=truth.federated,
        other=None if other is None else _tabulate(annotations, other.detect("eval against")),
        counts=counts,
        edges=questions.edges or DEFAULT_EDGES,
        resamples=questions.resamples,
        notes=[*_note_trained_on(noted, features), *_note_skipped(features), *truth.notes],
    )
    report = EvalReport(
        analysis=analysis,
        proposals=proposals,
        views=views,
        detections=detections,
        seconds=time.perf_counter() - started,
        results=None if folder is None else folder.results,
        coco_file=None if folder is None else folder.detections,
        provenance=_provenance(scored, features, questions, training=source),
    )
    report.write(coco_results(annotations, table))
    return report


def _provenance(
    scored: Subject, features: FeatureStore, questions: Questions, *, training: str | None
) -> dict[str, Any]:
    return {
        "run": None if scored.folder is None else noted_place(scored.folder.root),
        "store": noted_place(features.location),
        "training": training,
        **scored.provenance,
        **_describe_store(features),
        **questions.describe(),
    }


def _note_trained_on(noted: TrainingData | None, features: FeatureStore) -> list[str]:
    """Where the run is scored on the store that it learnt from."""
    if noted is None or noted.fingerprint != features.manifest.fingerprint():
        return []
    return ["the run was trained on these images: AP on others will be lower"]


def _open_own(subject: Path | str | nn.Module) -> FeatureStore:
    """The store that a run was validated on.

    Raises InputError where none is noted, or another one lies there now.
    """
    noted = None
    if not isinstance(subject, nn.Module):
        folder = RunFolder.open(Path(subject))
        noted = TrainingData.read(folder)
    if noted is None or not noted.validation_store:
        name = type(subject).__name__ if isinstance(subject, nn.Module) else subject
        raise InputError(
            f"--store is missing: the store to score {name} on; give a run and its store, "
            "`cachedet eval RUN --store STORE`"
        )
    place = noted.find_validation(folder)
    store = FeatureStore.open(place)
    if store.manifest.truth_digest != noted.validation:
        raise InputError(
            f"--store is missing: {place} is no longer what {subject} was validated on: it has "
            "other images or boxes now, or the run saw a part of it; name the store to score on"
        )
    _log.info("on %s, where the run was validated", place)
    return store


def _describe_store(features: FeatureStore) -> dict[str, Any]:
    manifest = features.manifest
    return {
        "store_fingerprint": manifest.fingerprint(),
        "truth_digest": manifest.truth_digest,
        "skipped": [list(pair) for pair in manifest.skipped],
    }


def _require_answerable(questions: Questions, views: Sequence[str]) -> None:
    """What can be known before anything is opened. Raises InputError."""
    require_resamples(questions.resamples, comparing=questions.against is not None)
    if questions.edges is not None:
        check_edges(questions.edges)
    require_separate(questions.choose, lvis=questions.lvis)
    if questions.chooses and questions.annotations is None:
        raise InputError(
            "--classes, --ignore-classes and --merge-classes are those of --annotations, which is "
            "missing: a run is scored on the classes it knows as it is; leave them out, or give "
            "the file"
        )
    if questions.lvis and questions.annotations is None:
        raise InputError(
            "--lvis needs --annotations: a store does not keep which classes an image surely "
            "lacks; give the LVIS file the store was extracted from"
        )
    if questions.proposals and len(views) > 1:
        raise InputError(
            f"--proposals are those of one view, got {','.join(views)}; leave --views out"
        )


def _require_replaceable(folder: RunFolder | None) -> None:
    """Raises InputError where somebody's file has the name of one that is to be written."""
    if folder is not None:
        require_ours(folder.results, kind=Kind.SCORES)
        require_ours(folder.detections, kind=Kind.RESULTS)


def _require_same_classes(scored: Subject, other: Subject | None) -> None:
    """Raises InputError."""
    if other is not None and other.categories != scored.categories:
        raise InputError(
            f"--against was trained on other classes: "
            f"{other.categories.unlike(scored.categories, where='of the run')}; compare runs of "
            "the same classes"
        )


def _find_annotations(questions: Questions, scored: Subject) -> TruthOfStore:
    stored = scored.features.annotations
    if questions.annotations is None:
        run = "" if scored.folder is None else f"{scored.folder.root} "
        where = str(scored.features.location)
        return truth_of_classes(stored, scored.categories, store=where, run=run)
    return read_annotations_of(
        stored,
        questions.annotations,
        categories=scored.categories,
        lvis=questions.lvis,
        choose=questions.choose,
    )


def _note_skipped(features: FeatureStore) -> list[str]:
    """The images that a store lacks of the annotation file it was extracted from."""
    skipped = features.manifest.skipped
    if not skipped:
        return []
    named = "; ".join(f"{name} ({reason})" for name, reason in skipped[:_NAMED])
    more = f"; and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
    were = "was" if len(skipped) == 1 else "were"
    return [
        f"{count_of(len(skipped), 'image')} {were} skipped at extraction, and {were} not scored: "
        f"{named}{more}"
    ]


def _find_counts(
    questions: Questions, scored: Subject, noted: TrainingData | None
) -> tuple[dict[int, int] | None, str | None]:
    """Training annotations of each class, and where they are from."""
    if questions.training is not None:
        counts = read_counts(questions.training, scored.categories, choose=questions.choose)
        return counts, shown(questions.training)
    if noted is not None:
        return noted.boxes, noted.store
    if questions.edges is not None:
        raise InputError(
            "--bins needs training annotations, of which nothing is known here; name the training "
            "store or annotation file with --training"
        )
    return None, None


def _tabulate(annotations: Annotations, detections: list[Detections]) -> DetectionTable:
    return tabulate(annotations, detections, with_masks=has_masks(detections))

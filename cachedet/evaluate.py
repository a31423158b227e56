"""Stage 3: score a run on a store."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cachedet.config.run import EvalConfig
from cachedet.data.views import parse_views
from cachedet.detector.build import build_detector, choose_read_levels
from cachedet.detector.protocol import max_proposals_of, require_detector
from cachedet.device import choose_device
from cachedet.errors import CheckpointError, InputError, UnwrittenError
from cachedet.evaluation.analysis import Analysis, analyse, require_resamples
from cachedet.evaluation.detection_table import DetectionTable, has_masks, tabulate
from cachedet.evaluation.files import TruthOfStore, read_annotations_of, read_counts
from cachedet.evaluation.inference import detect_store
from cachedet.evaluation.merging import Merging
from cachedet.evaluation.metrics import ClassScore, CocoScores, coco_results
from cachedet.evaluation.precision import ProposalReport, proposal_recall
from cachedet.evaluation.strata import DEFAULT_EDGES, check_edges
from cachedet.outputs import Kind, require_ours, write_file
from cachedet.progress import StageProgress, count_of
from cachedet.store.files.locations import shown
from cachedet.store.reader import FeatureStore
from cachedet.structures import Annotations, Detections
from cachedet.training.checkpoint import Checkpoint, load_checkpoint
from cachedet.training.partial import build_partial_detector
from cachedet.training.restoring import load_weights
from cachedet.training.run_folder import RunFolder, TrainingData, noted_place
from cachedet.version import __version__

_NAMED = 10  # skipped images in one note
EVALUATOR = {"evaluator": "cachedet, equal to pycocotools", "cachedet": __version__}
"""How JSON of scores ends, by which they are known as such; see cachedet/outputs.py."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked of a run beyond COCO's figures and the kinds of its errors."""

    against: Path | None = None  # another run, to compare detections on the same store with
    training: str | None = None  # an annotation file or store; None: what the run noted
    annotations: Path | None = None  # of any format, to score against instead of the store's
    lvis: bool = False  # score as LVIS v1 too; `annotations` must be an LVIS file
    # Of the bins of training annotations; None: 0, 10, 100, 1000 where counts are known.
    edges: Sequence[int] | None = None
    resamples: int = 0  # of the bootstrap; 0: no intervals
    proposals: bool = False  # recall of the RPN's proposals too

    def describe(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "annotations": self.annotations and noted_place(self.annotations),
            "against": self.against and noted_place(self.against),
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
    store: Path | str,
    *,
    detector: nn.Module | None = None,
    config: EvalConfig | None = None,
    questions: Questions | None = None,
) -> EvalReport:
    """Score a run, or a detector as it is, on a store.

    Of a run, results.json and a COCO results file are written into its folder.

    Args:
        subject: run folder, or the detector itself.
        store: with every view that is asked for.
        detector: what `train` was given as an object; a copy of it gets the run's weights.
        config: views to merge, images at a time, device, and which weights of the run.
        questions: what is asked beyond COCO's figures.

    Raises:
        InputError: an unknown view, or a question that cannot be answered.
        UnwrittenError: the run folder cannot be written; it holds the report.
        CheckpointError: no such run, or its features are not those of the store.
        DetectorError: the object is no detector, or returns something else than detections.
        StoreError: the store lacks a view, is incomplete or damaged.

    Example:
        >>> report = cachedet.evaluate("runs/first", "val.zarr")
        >>> report.ap, [score.name for score in report.per_class]
    """
    config, questions = config or EvalConfig(), questions or Questions()
    views = tuple(view.name for view in parse_views(config.views))
    _require_answerable(questions, views)
    features = FeatureStore.open(store)
    features.require_complete(views)
    of_run = partial(_Scored.of_run, detector=detector)
    if isinstance(subject, nn.Module):
        scored = _Scored.of_module(subject, features, config, views)
    else:
        scored = of_run(Path(subject), features, config, views)
    against = questions.against
    other = None if against is None else of_run(against, features, config, views)
    folder = scored.folder
    _require_replaceable(folder)
    counts, source = _find_counts(questions, folder, features)
    truth, started = _find_annotations(questions, features.annotations), time.perf_counter()
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
        notes=[*_note_skipped(features), *truth.notes],
    )
    report = EvalReport(
        analysis=analysis,
        proposals=proposals,
        views=views,
        detections=detections,
        seconds=time.perf_counter() - started,
        results=None if folder is None else folder.results,
        coco_file=None if folder is None else folder.detections,
        provenance={
            "run": None if folder is None else noted_place(folder.root),
            "store": noted_place(store),
            "training": source,
            **scored.provenance,
            "store_fingerprint": features.manifest.fingerprint(),
            "skipped": [list(pair) for pair in features.manifest.skipped],
            **questions.describe(),
        },
    )
    report.write(coco_results(annotations, table))
    return report


def load_detector(
    checkpoint: Checkpoint, *, device: torch.device, detector: nn.Module | None = None
) -> nn.Module:
    """The trained detector of a checkpoint, in eval mode.

    A copy of `detector` gets the weights; without it one is built from the config.
    Raises ConfigError where an object was trained and none is given, CheckpointError where the
    weights do not fit it.
    """
    if detector is not None:
        detector = copy.deepcopy(require_detector(detector))
    elif checkpoint.config.freeze_at is not None:
        detector = build_partial_detector(
            checkpoint.config, checkpoint.manifest, weights=None, where="the checkpoint"
        )
    else:
        detector = build_detector(
            checkpoint.config.detector,
            spec=checkpoint.manifest.spec,
            num_classes=len(checkpoint.categories),
        )
    load_weights(detector, checkpoint.scored_heads, where=checkpoint.name)
    return detector.to(device).to(memory_format=torch.channels_last).eval()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scored:
    """A detector about to be scored on a store that fits it."""

    detector: nn.Module
    name: str  # for messages
    folder: RunFolder | None  # of its run
    features: FeatureStore
    levels: tuple[str, ...]
    merging: Merging
    views: tuple[str, ...]
    batch_size: int
    device: torch.device
    provenance: dict[str, Any]

    @classmethod
    def of_run(
        cls,
        run: Path,
        features: FeatureStore,
        config: EvalConfig,
        views: tuple[str, ...],
        *,
        detector: nn.Module | None,
    ) -> _Scored:
        folder, device = RunFolder.open(run), choose_device(config.device)
        checkpoint = load_checkpoint(folder.weights(config.weights))
        _require_fits(checkpoint, features, run)
        trained = checkpoint.config.detector
        return cls(
            detector=load_detector(checkpoint, device=device, detector=detector),
            name=f"{run} is a {trained.kind}",
            folder=folder,
            features=features,
            levels=choose_read_levels(
                checkpoint.config,
                held=features.manifest.spec,
                network=features.manifest.network,
            ),
            merging=Merging.like(trained.postprocess),
            views=views,
            batch_size=config.batch_size,
            device=device,
            provenance={"step": checkpoint.step, "weights": config.weights},
        )

    @classmethod
    def of_module(
        cls, module: nn.Module, features: FeatureStore, config: EvalConfig, views: tuple[str, ...]
    ) -> _Scored:
        parameter = next(require_detector(module).parameters(), None)
        name = type(module).__name__
        return cls(
            detector=module,
            name=f"{name} has none",
            folder=None,
            features=features,
            levels=features.manifest.spec.names,
            merging=Merging(),
            views=views,
            batch_size=config.batch_size,
            device=torch.device("cpu") if parameter is None else parameter.device,
            provenance={"detector": name},
        )

    def detect(self, stage: str) -> list[Detections]:
        with self._progress(stage, len(self.views)) as progress:
            return detect_store(
                self.detector,
                self.features,
                views=self.views,
                merging=self.merging,
                levels=self.levels,
                batch_size=self.batch_size,
                device=self.device,
                on_progress=progress.advance,
            )

    def recall_proposals(self, annotations: Annotations) -> ProposalReport:
        """Raises InputError where the detector proposes nothing."""
        most = max_proposals_of(self.detector)
        if most is None:
            raise InputError(
                "--proposals needs a two-stage detector, whose first stage proposes boxes; "
                f"{self.name}; leave it out"
            )
        with self._progress("proposals", 1) as progress:
            proposals = detect_store(
                self.detector,
                self.features,
                views=self.views[:1],
                method="propose",
                levels=self.levels,
                batch_size=self.batch_size,
                device=self.device,
                on_progress=progress.advance,
            )
        recalls = proposal_recall(annotations, proposals)
        return ProposalReport(most_per_image=most, at_limits=recalls)

    def _progress(self, stage: str, passes: int) -> StageProgress:
        return StageProgress(stage, total=len(self.features) * passes, unit="images")


def _require_answerable(questions: Questions, views: Sequence[str]) -> None:
    """What can be known before anything is opened. Raises InputError."""
    require_resamples(questions.resamples, comparing=questions.against is not None)
    if questions.edges is not None:
        check_edges(questions.edges)
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


def _find_annotations(questions: Questions, stored: Annotations) -> TruthOfStore:
    if questions.annotations is None:
        return TruthOfStore(annotations=stored)
    return read_annotations_of(stored, questions.annotations, lvis=questions.lvis)


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
    questions: Questions, folder: RunFolder | None, features: FeatureStore
) -> tuple[dict[int, int] | None, str | None]:
    """Training annotations of each class, and where they are from."""
    if questions.training is not None:
        counts = read_counts(questions.training, features.annotations.categories)
        return counts, shown(questions.training)
    noted = None if folder is None else TrainingData.read(folder)
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


def _require_fits(checkpoint: Checkpoint, store: FeatureStore, run: Path) -> None:
    trained, scored = checkpoint.manifest, store.manifest
    field = trained.incompatible_field(scored)
    if field == "categories":
        raise CheckpointError(
            f"the run {run} was trained on other classes than the store {store.location} has: "
            f"{trained.categories.unlike(scored.categories)}; evaluate on a store "
            "extracted with the same ones"
        )
    if field is not None:
        raise CheckpointError(
            f"the run {run} was trained on features with {field} = {getattr(trained, field)}, the "
            f"store {store.location} has {getattr(scored, field)}; evaluate on a store extracted "
            "with the same backbone and weights. Runs on features of different backbones are "
            "compared by their results files: `cachedet eval --detections A/detections.json "
            "--against B/detections.json --annotations FILE`"
        )

"""Stage 3: score a run on a store."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cachedet.config.run import EvalConfig
from cachedet.data.views import parse_views
from cachedet.detector.build import Detector, build_detector, choose_levels
from cachedet.detector.rcnn import RCNN
from cachedet.device import choose_device
from cachedet.errors import CheckpointError, InputError
from cachedet.evaluation.analysis import Analysis, analyse, require_resamples
from cachedet.evaluation.detection_table import DetectionTable, has_masks, tabulate
from cachedet.evaluation.files import differing_classes, read_annotations_of, read_counts
from cachedet.evaluation.inference import detect_store, propose_store
from cachedet.evaluation.merging import Merging
from cachedet.evaluation.metrics import CocoScores, coco_results
from cachedet.evaluation.precision import ProposalReport, proposal_recall
from cachedet.evaluation.strata import DEFAULT_EDGES, check_edges
from cachedet.progress import StageProgress
from cachedet.store.reader import FeatureStore
from cachedet.structures import Annotations, Detections
from cachedet.training.checkpoint import Checkpoint, load_checkpoint
from cachedet.training.run_folder import RunFolder, TrainingData
from cachedet.version import __version__


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked of a run beyond COCO's figures and the kinds of its errors.

    Attributes:
        against: another run, whose detections on the same store are compared with this one's.
        training: an annotation file or store; None: what the run noted when it was trained.
        annotations: a COCO or LVIS file to score against instead of the store's own boxes.
        lvis: score as LVIS v1 too; `annotations` must be an LVIS file.
        edges: of the bins of training annotations; None: 0, 10, 100, 1000 where counts are known.
        resamples: of the bootstrap; 0: no intervals.
        proposals: recall of the RPN's proposals too.
    """

    against: Path | None = None
    training: str | None = None
    annotations: Path | None = None
    lvis: bool = False
    edges: Sequence[int] | None = None
    resamples: int = 0
    proposals: bool = False

    def describe(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "annotations": None if self.annotations is None else str(self.annotations),
            "against": None if self.against is None else str(self.against),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalReport:
    """Scores of a run, with the detections they were computed from."""

    analysis: Analysis
    proposals: ProposalReport | None
    views: tuple[str, ...]  # whose detections were merged
    detections: list[Detections]  # pixels of the images, in the order of the store's rows
    seconds: float
    results: Path
    coco_file: Path
    provenance: dict[str, Any]  # what was scored, as JSON

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
            "detections": str(self.coco_file),
            **self.provenance,
        }


def evaluate(
    run: Path,
    *,
    store: Path | str,
    config: EvalConfig | None = None,
    questions: Questions | None = None,
) -> EvalReport:
    """Score the run's detector; writes results.json and a COCO results file into the run folder.

    Raises:
        InputError: an unknown view, or a question that cannot be answered.
        CheckpointError: no such run, or its features are not those of the store.
        StoreError: the store lacks a view, is incomplete or damaged.
    """
    config, questions = config or EvalConfig(), questions or Questions()
    views = tuple(view.name for view in parse_views(config.views))
    _require_answerable(questions, views)
    features = FeatureStore.open(store)
    features.require_complete(views)
    own = _Scored.open(run, features, config, views)
    against = questions.against
    other = None if against is None else _Scored.open(against, features, config, views)
    counts, source = _find_counts(questions, own, features)
    annotations, federated = features.annotations, None
    if questions.annotations is not None:
        annotations, federated = read_annotations_of(
            annotations, questions.annotations, lvis=questions.lvis
        )
    started = time.perf_counter()
    proposals = own.recall_proposals(annotations) if questions.proposals else None
    detections = own.detect("eval")
    table = _tabulate(annotations, detections)
    analysis = analyse(
        annotations,
        table,
        federated=federated,
        other=None if other is None else _tabulate(annotations, other.detect("eval against")),
        counts=counts,
        edges=questions.edges or DEFAULT_EDGES,
        resamples=questions.resamples,
    )
    report = EvalReport(
        analysis=analysis,
        proposals=proposals,
        views=views,
        detections=detections,
        seconds=time.perf_counter() - started,
        results=own.folder.results,
        coco_file=own.folder.detections,
        provenance={
            "run": str(run),
            "store": str(store),
            "training": source,
            **own.describe(),
            **questions.describe(),
        },
    )
    report.coco_file.write_text(json.dumps(coco_results(annotations, table)), encoding="utf-8")
    report.results.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    return report


def load_detector(checkpoint: Checkpoint, *, device: torch.device) -> Detector:
    """The trained detector of a checkpoint, in eval mode."""
    detector = build_detector(
        checkpoint.config.detector,
        spec=checkpoint.manifest.spec,
        num_classes=len(checkpoint.categories),
    )
    detector.load_state_dict(checkpoint.scored_heads)
    return detector.to(device).to(memory_format=torch.channels_last).eval()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scored:
    """A run about to be scored on a store that fits it."""

    folder: RunFolder
    checkpoint: Checkpoint
    features: FeatureStore
    config: EvalConfig
    views: tuple[str, ...]
    device: torch.device

    @classmethod
    def open(
        cls, run: Path, features: FeatureStore, config: EvalConfig, views: tuple[str, ...]
    ) -> _Scored:
        folder = RunFolder.open(run)
        checkpoint = load_checkpoint(folder.weights(config.weights))
        _require_fits(checkpoint, features, run)
        return cls(
            folder=folder,
            checkpoint=checkpoint,
            features=features,
            config=config,
            views=views,
            device=choose_device(config.device),
        )

    def describe(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "step": self.checkpoint.step,
            "weights": self.config.weights,
            "store_fingerprint": self.features.manifest.fingerprint(),
            "evaluator": "cachedet, equal to pycocotools",
            "cachedet": __version__,
        }

    @property
    def levels(self) -> tuple[str, ...]:
        spec = choose_levels(self.checkpoint.config.detector, self.features.manifest.spec)
        return tuple(spec.names)

    def detect(self, stage: str) -> list[Detections]:
        with self._progress(stage, len(self.views)) as progress:
            return detect_store(
                load_detector(self.checkpoint, device=self.device),
                self.features,
                views=self.views,
                merging=Merging.like(self.checkpoint.config.detector.postprocess),
                levels=self.levels,
                batch_size=self.config.batch_size,
                device=self.device,
                on_progress=progress.advance,
            )

    def recall_proposals(self, annotations: Annotations) -> ProposalReport:
        """Raises InputError where the detector proposes nothing."""
        detector = load_detector(self.checkpoint, device=self.device)
        if not isinstance(detector, RCNN):
            raise InputError(
                "--proposals needs a two-stage detector, whose RPN proposes boxes; "
                f"{self.folder.root} is a {self.checkpoint.config.detector.kind}; leave it out"
            )
        with self._progress("proposals", 1) as progress:
            proposals = propose_store(
                detector,
                self.features,
                view=self.views[0],
                levels=self.levels,
                batch_size=self.config.batch_size,
                device=self.device,
                on_progress=progress.advance,
            )
        return ProposalReport(
            most_per_image=detector.rpn.test_counts.post_nms,
            at_limits=proposal_recall(annotations, proposals),
        )

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


def _find_counts(
    questions: Questions, own: _Scored, features: FeatureStore
) -> tuple[dict[int, int] | None, str | None]:
    """Training annotations of each class, and where they are from."""
    if questions.training is not None:
        return read_counts(questions.training, features.annotations.categories), questions.training
    noted = TrainingData.read(own.folder)
    if noted is not None:
        return noted.boxes, noted.store
    if questions.edges is not None:
        raise InputError(
            f"--bins needs training annotations, and {own.folder.root} was trained before runs "
            "kept their numbers; name its training store or annotation file with --training"
        )
    return None, None


def _tabulate(annotations: Annotations, detections: list[Detections]) -> DetectionTable:
    return tabulate(annotations, detections, with_masks=has_masks(detections))


def _require_fits(checkpoint: Checkpoint, store: FeatureStore, run: Path) -> None:
    trained, found = checkpoint.manifest, store.manifest
    field = trained.incompatible_field(found)
    if field == "categories":
        raise CheckpointError(
            f"the run {run} was trained on other classes than the store {store.location} has: "
            f"{differing_classes(trained.categories, found.categories)}; evaluate on a store "
            "extracted with the same ones"
        )
    if field is not None:
        raise CheckpointError(
            f"the run {run} was trained on features with {field} = {getattr(trained, field)}, the "
            f"store {store.location} has {getattr(found, field)}; evaluate on a store extracted "
            "with the same backbone and weights. Runs on features of different backbones are "
            "compared by their results files: `cachedet eval --detections A/detections.json "
            "--against B/detections.json --annotations FILE`"
        )

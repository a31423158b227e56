"""Stage 3: score a run on a store."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cachedet.config import EvalConfig
from cachedet.data.views import parse_views
from cachedet.detector.build import Detector, build_detector, choose_levels
from cachedet.device import choose_device
from cachedet.errors import CheckpointError
from cachedet.evaluation.detection_table import has_masks, tabulate
from cachedet.evaluation.inference import detect_store
from cachedet.evaluation.merging import Merging
from cachedet.evaluation.metrics import CocoScores, coco_results, score_table
from cachedet.progress import StageProgress
from cachedet.store.reader import FeatureStore
from cachedet.structures import Detections
from cachedet.training.checkpoint import Checkpoint, load_checkpoint
from cachedet.training.run_folder import RunFolder
from cachedet.version import __version__


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalReport:
    """Scores of a run, with the detections they were computed from."""

    scores: CocoScores
    mask_scores: CocoScores | None  # where the detector has a mask head
    views: tuple[str, ...]  # whose detections were merged
    detections: list[Detections]  # pixels of the pictures, in the order of the store's rows
    seconds: float
    results: Path
    coco_file: Path

    def to_json(self) -> dict[str, Any]:
        masks = {"masks": self.mask_scores.to_json()} if self.mask_scores is not None else {}
        return {
            **self.scores.to_json(),
            **masks,
            "views": list(self.views),
            "seconds": self.seconds,
            "detections": str(self.coco_file),
        }


def evaluate(run: Path, *, store: Path | str, config: EvalConfig | None = None) -> EvalReport:
    """Score the run's detector; writes results.json and a COCO results file into the run folder.

    Raises:
        InputError: an unknown view.
        CheckpointError: no such run, or its features are not those of the store.
        StoreError: the store lacks a view, is incomplete or damaged.
    """
    config = config or EvalConfig()
    views = [view.name for view in parse_views(config.views)]
    folder = RunFolder.open(run)
    checkpoint = load_checkpoint(folder.weights(config.weights))
    features = FeatureStore.open(store)
    features.require_complete(views)
    _require_fits(checkpoint, features)
    device = choose_device(config.device)
    selection = checkpoint.config.detector.selection
    started = time.perf_counter()
    with StageProgress("eval", total=len(features) * len(views), unit="pictures") as progress:
        detections = detect_store(
            load_detector(checkpoint, device=device),
            features,
            views=views,
            merging=Merging(nms_iou=selection.nms_iou, max_detections=selection.max_detections),
            levels=choose_levels(checkpoint.config.detector, features.manifest.spec).names,
            batch_size=config.batch_size,
            device=device,
            on_progress=progress.advance,
        )
    truth = features.truth
    table = tabulate(truth, detections, with_masks=has_masks(detections))
    with_masks = truth.masks is not None and table.masks is not None
    report = EvalReport(
        scores=score_table(truth, table),
        mask_scores=score_table(truth, table, of="segm") if with_masks else None,
        views=tuple(views),
        detections=detections,
        seconds=time.perf_counter() - started,
        results=folder.results,
        coco_file=folder.detections,
    )
    report.coco_file.write_text(json.dumps(coco_results(truth, table)), encoding="utf-8")
    _write_results(report, features, checkpoint, run=run, store_path=store)
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


def _require_fits(checkpoint: Checkpoint, store: FeatureStore) -> None:
    trained, found = checkpoint.manifest, store.manifest
    field = trained.incompatible_field(found)
    if field is not None:
        raise CheckpointError(
            f"the run was trained on features with {field} = {getattr(trained, field)}, "
            f"the store has {getattr(found, field)}; evaluate on a store extracted with the "
            "same backbone, weights and classes"
        )


def _write_results(
    report: EvalReport,
    store: FeatureStore,
    checkpoint: Checkpoint,
    *,
    run: Path,
    store_path: Path | str,
) -> None:
    results = {
        **report.to_json(),
        "run": str(run),
        "store": str(store_path),
        "step": checkpoint.step,
        "store_fingerprint": store.manifest.fingerprint(),
        "evaluator": "cachedet, equal to pycocotools",
        "cachedet": __version__,
    }
    report.results.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

"""What is scored: the detector of a run or one as it is, on a store whose features it knows."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from cachedet.config.run import EvalConfig
from cachedet.detector.build import build_detector, choose_read_levels
from cachedet.detector.end_to_end import EndToEndDetector
from cachedet.detector.protocol import max_proposals_of, require_detector
from cachedet.device import choose_device
from cachedet.errors import CheckpointError, InputError
from cachedet.evaluation.inference import detect_store, stored_batches
from cachedet.evaluation.merging import Merging
from cachedet.evaluation.proposals import ProposalReport, proposal_recall
from cachedet.progress import StageProgress
from cachedet.store.reader import FeatureStore
from cachedet.structures import Annotations, CategoryMap, Detections
from cachedet.training.checkpoint import Checkpoint, load_checkpoint
from cachedet.training.partial import build_partial_detector
from cachedet.training.restoring import load_weights
from cachedet.training.run_folder import RunFolder


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
class Subject:
    """A detector about to be scored on a store that fits it."""

    detector: nn.Module
    name: str  # for messages
    folder: RunFolder | None  # of its run
    features: FeatureStore
    categories: CategoryMap  # that it knows; some of the store's, or others
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
    ) -> Subject:
        folder, device = RunFolder.open(run), choose_device(config.device)
        checkpoint = load_checkpoint(folder.weights(config.weights))
        _require_fits(checkpoint, features, run)
        trained = checkpoint.config.detector
        return cls(
            detector=load_detector(checkpoint, device=device, detector=detector),
            name=f"{run} is a {trained.kind}",
            folder=folder,
            features=features,
            categories=checkpoint.categories,
            levels=choose_read_levels(checkpoint.config, features.manifest),
            merging=Merging.like(trained.postprocess),
            views=views,
            batch_size=config.batch_size,
            device=device,
            provenance={"step": checkpoint.step, "weights": config.weights},
        )

    @classmethod
    def of_module(
        cls, module: nn.Module, features: FeatureStore, config: EvalConfig, views: tuple[str, ...]
    ) -> Subject:
        parameter = next(require_detector(module).parameters(), None)
        name = type(module).__name__
        return cls(
            detector=module,
            name=f"{name} has none",
            folder=None,
            features=features,
            categories=features.annotations.categories,
            levels=_levels_of(module, features),
            merging=Merging(),
            views=views,
            batch_size=config.batch_size,
            device=torch.device("cpu") if parameter is None else parameter.device,
            provenance={"detector": name},
        )

    def detect(self, stage: str) -> list[Detections]:
        return self._run(stage, "detect", self.views)

    def recall_proposals(self, annotations: Annotations) -> ProposalReport:
        """Raises InputError where the detector proposes nothing."""
        most = max_proposals_of(self.detector)
        if most is None:
            raise InputError(
                "--proposals needs a two-stage detector, whose first stage proposes boxes; "
                f"{self.name}; leave it out"
            )
        proposals = self._run("proposals", "propose", self.views[:1])
        recalls = proposal_recall(annotations, proposals)
        return ProposalReport(most_per_image=most, at_limits=recalls)

    def _run(
        self, stage: str, method: Literal["detect", "propose"], views: tuple[str, ...]
    ) -> list[Detections]:
        batches = stored_batches(
            self.features, levels=self.levels, batch_size=self.batch_size, device=self.device
        )
        total = len(self.features) * len(views)
        with StageProgress(stage, total=total, unit="images") as progress:
            return detect_store(
                self.detector,
                self.features,
                batches=batches,
                views=views,
                method=method,
                merging=self.merging,
                on_progress=progress.advance,
            )


def _levels_of(module: nn.Module, features: FeatureStore) -> tuple[str, ...]:
    """What a detector without a config is given."""
    spec = features.manifest.spec
    takes_states = isinstance(module, EndToEndDetector)  # it picks what its stages need
    return spec.names if takes_states else spec.pyramid.names


def _require_fits(checkpoint: Checkpoint, store: FeatureStore, run: Path) -> None:
    trained, scored = checkpoint.manifest, store.manifest
    field = trained.incompatible_field(scored)
    if field not in (None, "categories"):  # classes are those of what it is scored against
        raise CheckpointError(
            f"the run {run} was trained on features with {field} = {trained.shown(field)}, "
            f"the store {store.location} has {scored.shown(field)}; evaluate on a store extracted "
            "with the same backbone and weights. Runs on features of different backbones are "
            "compared by their results files: `cachedet eval --detections A/detections.json "
            "--against B/detections.json --annotations FILE`"
        )

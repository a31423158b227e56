"""Stage 2: train neck and heads on cached features, without backbone, images or annotations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cachedet.config.detector import CustomDetectorConfig
from cachedet.config.overrides import Overrides
from cachedet.config.presets import load_config
from cachedet.config.run import VALIDATED, EvalConfig, TrainConfig
from cachedet.detector.build import choose_read_levels
from cachedet.detector.protocol import require_detector, trains_masks
from cachedet.distributed.collective import from_first, is_first, rank, world_size
from cachedet.distributed.data_parallel import find_launch, joined_ranks
from cachedet.errors import CheckpointError, ConfigError
from cachedet.evaluation.inference import detect_store, stored_batches
from cachedet.evaluation.metrics import score_detections
from cachedet.evaluation.plots import plot_training
from cachedet.loading.loader import FeatureLoader, make_run_loader
from cachedet.loading.residency import with_disk_cache
from cachedet.outputs import require_outside_stores
from cachedet.store.reader import FeatureStore
from cachedet.training.loop import (
    EARLY_STOPPING,
    OnValidation,
    Validator,
    is_signal,
    run_session,
)
from cachedet.training.optimizer import count_trained
from cachedet.training.partial import build_partial_detector_of, require_stages
from cachedet.training.run_folder import RunFolder, TrainingData
from cachedet.training.start import pin_views, read_noted, require_fit, sole_run, start_or_continue
from cachedet.training.thread_pace import advise_threads
from cachedet.training.trainer import Trainer, make_trainer

_NO_BOXES = "note: no training image holds a box, so only background is learnt"


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a run of `train-heads` reached."""

    run: Path
    images: int  # of the training store
    views: dict[str, float]  # that were trained on, with their probabilities
    steps: int
    epochs: int  # that are done, validation included
    reason: str  # it ended: finished, max_steps, early_stopping, given_up, or a signal's name
    seconds: float
    seconds_per_epoch: float
    step_seconds_per_epoch: float  # of them in steps, without validations and saving
    step_seconds: float  # of all calls together
    peak_memory: int  # bytes: on an accelerator of its tensors, else all RAM of this process
    parameters: int  # that are trained
    best_ap: float | None  # None without a validation
    losses: tuple[float, ...]  # of every step of this call

    @property
    def stopped_early(self) -> bool:
        return self.reason == EARLY_STOPPING

    @property
    def was_interrupted(self) -> bool:
        """By a signal; `resume` goes on."""
        return is_signal(self.reason)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "run": str(self.run), "stopped_early": self.stopped_early}


def train(
    config: str | Path | Mapping[str, Any] | TrainConfig,
    *,
    train_store: Path | str,
    run: Path | str,
    val_store: Path | str | FeatureStore | None = None,
    resume: bool = False,
    relabelled: bool = False,
    detector: nn.Module | None = None,
    overrides: Overrides = (),
    on_validation: OnValidation | None = None,
) -> TrainReport:
    """Train the heads of `config` on a store; `best.pt` is chosen by validation AP.

    SIGTERM, SIGHUP, SIGUSR1 and a first Ctrl-C end it after the step under way, its state saved.
    Started by torchrun, the processes share every batch, and the first writes the run folder.

    Args:
        config: a preset's name, a path, keys and values, or a TrainConfig.
        train_store, val_store: folders or URLs, the second also an open store; without it nothing
            is validated.
        run: folder to make, or to go on in.
        resume: go on where the run's last checkpoint is.
        relabelled: with `resume`, also where boxes of the store were changed since.
        detector: trained in the place of what the config describes; see `Detector`.
        overrides: of the config, {"schedule.epochs": 12} or ["schedule.epochs=12"].
        on_validation: called with the epochs done and their scores (ap, ap50, ap75); where it
            returns True the run ends there.

    Raises:
        ConfigError, CheckpointError: the config or run folder does not fit.
        InputError: another process trains in the run folder.
        DetectorError: `detector` is none, or returns something else than losses or detections.
        StoreError: a store is incomplete or damaged.
        NonFiniteLossError: a loss or gradient became NaN or Inf.
        RankError: the processes did not meet, or one was lost.

    Examples:
        >>> report = cachedet.train(
        ...     "retinanet_fpn_tiny", train_store="train.zarr", val_store="val.zarr", run="runs/1"
        ... )
        >>> report.best_ap
    """
    require_outside_stores(run, option="--run")
    config = load_config(config, overrides=overrides)
    if detector is not None:
        config = config.model_copy(update={"detector": note_detector(detector, config)})
        require_stages(detector, config)
    launch, folder = find_launch(), RunFolder(Path(run))
    with joined_ranks(launch, device=config.device), sole_run(folder, resume=resume):
        return _train_together(
            config,
            train_store=train_store,
            folder=folder,
            val_store=val_store,
            resume=resume,
            relabelled=relabelled,
            restarts=launch.restarts,
            detector=detector,
            on_validation=on_validation,
        )


def _train_together(
    config: TrainConfig,
    *,
    train_store: Path | str,
    folder: RunFolder,
    val_store: Path | str | FeatureStore | None,
    resume: bool,
    relabelled: bool,
    restarts: int,
    detector: nn.Module | None,
    on_validation: OnValidation | None,
) -> TrainReport:
    """`train` on each of the processes that have joined, or on the only one."""
    opened = FeatureStore.open(train_store)
    store = with_disk_cache(opened, config.residency, config.disk_cache)
    goes_on = resume or restarts > 0
    views = from_first(lambda: pin_views(config, store, folder, goes_on=goes_on))
    config = config.model_copy(update={"views": views})
    store.require_complete(tuple(views))
    validation = FeatureStore.open(val_store) if val_store else None
    if validation is not None:
        validation.require_complete(["base"])
        if store.disk_cache and validation.is_remote:
            validation = with_disk_cache(validation, config.residency, config.disk_cache)
    require_fit(config, store, validation)
    torch.manual_seed(config.seed)
    loader = make_run_loader(config, store, rank=rank(), world_size=world_size())
    total_steps = _steps_until(loader, config, config.schedule.epochs)
    trainer = make_trainer(
        config,
        manifest=store.manifest,
        total_steps=total_steps,
        detector=build_partial_detector_of(config, store) if detector is None else detector,
    )
    data = TrainingData.of(store, validation=validation, run=folder.root)
    start_or_continue(
        folder,
        config,
        trainer,
        store.manifest,
        data=data,
        resume=resume,
        relabelled=relabelled,
        restarts=restarts,
    )
    _require_position(trainer, loader, config, folder)
    has_copies = detector is None and not config.compile  # others may not
    pace = advise_threads(trainer, loader, max_steps=config.max_steps) if has_copies else ""
    if is_first():
        data.after(read_noted(folder), step=trainer.step).write(folder)
    done = run_session(
        config,
        folder=folder,
        trainer=trainer,
        loader=loader,
        manifest=store.manifest,
        validator=_make_validator(config, validation, device=trainer.device),
        notes=[*filter(None, ("" if len(store.annotations.boxes) else _NO_BOXES, pace))],
        on_validation=on_validation,
    )
    if is_first():
        plot_training(folder.metrics, folder.plots / "training.png")
    epochs = max(len(done.losses), 1) / _steps_of(loader, config, 0)  # taken by this call
    return TrainReport(
        run=folder.root,
        images=len(store),
        views=views,
        steps=trainer.step,
        epochs=trainer.epoch,
        reason=done.reason,
        seconds=done.seconds,
        seconds_per_epoch=done.seconds / epochs,
        step_seconds_per_epoch=done.step_seconds / epochs,
        step_seconds=trainer.seconds,
        peak_memory=done.peak_memory,
        parameters=count_trained(trainer.detector),
        best_ap=trainer.best_ap if trainer.best_ap >= 0 else None,
        losses=done.losses,
    )


def note_detector(detector: nn.Module, config: TrainConfig) -> CustomDetectorConfig:
    """What a run notes of a detector that was given as an object. Raises DetectorError."""
    return CustomDetectorConfig(
        name=type(require_detector(detector)).__name__,
        levels=config.detector.levels,
        masks=trains_masks(detector),
        postprocess=config.detector.postprocess,
    )


def _make_validator(
    config: TrainConfig, store: FeatureStore | None, *, device: torch.device
) -> Validator | None:
    """Computes COCO figures of a detector on every image of `store`, always in float32."""
    if store is None:
        return None

    def score(detector: nn.Module, between_batches: Callable[[], None]) -> dict[str, float]:
        levels = choose_read_levels(config, store.manifest)
        batches = stored_batches(
            store, levels=levels, batch_size=EvalConfig().batch_size, device=device
        )
        detections = detect_store(
            detector, store, batches=batches, on_progress=lambda _: between_batches()
        )
        scores = score_detections(store.annotations, detections)
        return {name: getattr(scores, name) for name in VALIDATED}

    return score


def _require_position(
    trainer: Trainer, loader: FeatureLoader, config: TrainConfig, folder: RunFolder
) -> None:
    """Raises CheckpointError where the run's state stands at a step, epoch or batch it lacks."""
    step, epoch, batch, epochs = trainer.step, trainer.epoch, trainer.batch, config.schedule.epochs
    batches = len(loader.plan(epoch)) if epoch < epochs else 0
    if epoch > epochs:
        reason = f"its state stands in epoch {epoch}, of {epochs}"
    elif batch > batches:
        reason = f"its state stands before batch {batch} of epoch {epoch}, which has {batches}"
    else:
        accumulated = math.ceil(batch / config.schedule.accumulate)
        expected = _steps_until(loader, config, epoch) + accumulated
        if step == expected:
            return
        reason = (
            f"its state says step {step}, and epoch {epoch}, batch {batch}, which is step "
            f"{expected}"
        )
    raise CheckpointError(
        f"cannot resume {folder.root}: {reason}; move {folder.last} away to go on from "
        "previous.pt, or start again with another --run"
    )


def _steps_until(loader: FeatureLoader, config: TrainConfig, epochs: int) -> int:
    """Steps of the first epochs. Raises ConfigError where no step of one would be whole."""
    if loader.plans_alike:
        return epochs * _steps_of(loader, config, 0)
    return sum(_steps_of(loader, config, epoch) for epoch in range(epochs))


def _steps_of(loader: FeatureLoader, config: TrainConfig, epoch: int) -> int:
    """Raises ConfigError where no step of the epoch would be whole."""
    batches, accumulate = len(loader.plan(epoch)), config.schedule.accumulate
    if accumulate > batches:
        raise ConfigError(
            f"schedule.accumulate is {accumulate}, epoch {epoch} has only {batches} batches: set "
            f"schedule.accumulate to at most {batches}, or a smaller schedule.batch_size"
        )
    return math.ceil(batches / accumulate)

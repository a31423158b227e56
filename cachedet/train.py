"""Stage 2: train neck and heads on cached features, without backbone, pictures or annotations."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from cachedet.config import EvalConfig, TrainConfig, dump_config
from cachedet.detector.build import Detector, choose_levels
from cachedet.errors import CheckpointError, ConfigError
from cachedet.evaluation.inference import detect_store
from cachedet.evaluation.metrics import CocoScores, score_detections
from cachedet.evaluation.plots import plot_training
from cachedet.progress import StageProgress
from cachedet.store.manifest import Manifest
from cachedet.store.reader import FeatureStore
from cachedet.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cachedet.training.loader import FeatureLoader, make_loader
from cachedet.training.metrics_log import MetricsLog
from cachedet.training.run_folder import RunFolder
from cachedet.training.trainer import Trainer, make_trainer

_LOG_EVERY = 20  # steps between rows of metrics.csv


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a run of `train-heads` reached."""

    run: Path
    steps: int
    seconds: float
    seconds_per_epoch: float
    parameters: int
    best_ap: float | None  # None without a validation store
    losses: tuple[float, ...]  # of every step of this call


def train(
    config: TrainConfig,
    *,
    train_store: Path | str,
    run: Path,
    val_store: Path | str | None = None,
    resume: bool = False,
) -> TrainReport:
    """Train the heads of `config` on a store; `best.pt` is chosen by validation AP.

    Raises:
        ConfigError, CheckpointError: the config or run folder does not fit.
        StoreError: a store is incomplete or damaged.
        NonFiniteLossError: a loss or gradient became NaN or Inf.
    """
    store = _open_complete(train_store)
    validation = _open_complete(val_store) if val_store else None
    if validation is not None:
        _require_same_features(store.manifest, validation.manifest)
    _require_masks(config, store)
    torch.manual_seed(config.seed)
    loader = make_loader(config, store)
    trainer = make_trainer(
        config, manifest=store.manifest, total_steps=_count_steps(loader, config)
    )
    folder = _start_or_continue(RunFolder(run), config, trainer, store.manifest, resume=resume)
    started = time.perf_counter()
    losses = _train_epochs(trainer, loader, config, store.manifest, validation, folder)
    seconds = time.perf_counter() - started
    plot_training(folder.metrics, folder.plots / "training.png")
    return TrainReport(
        run=run,
        steps=trainer.step,
        seconds=seconds,
        seconds_per_epoch=seconds / max(len(losses), 1) * len(loader.plan(0)),
        parameters=sum(p.numel() for p in trainer.detector.parameters()),
        best_ap=trainer.best_ap if validation is not None else None,
        losses=tuple(losses),
    )


def _train_epochs(
    trainer: Trainer,
    loader: FeatureLoader,
    config: TrainConfig,
    manifest: Manifest,
    validation: FeatureStore | None,
    folder: RunFolder,
) -> list[float]:
    """Train to the end; returns the loss of every step taken."""
    losses: list[float] = []
    total = trainer.learning_rate.total_steps
    columns = log_columns(trainer.detector)
    log = MetricsLog(folder.metrics, columns, keep_until_step=trainer.step)
    with log, StageProgress("train", total=total, unit="steps", done=trainer.step) as progress:
        note = _validation_note(None, trainer.best_ap)
        while trainer.epoch < config.schedule.epochs:
            for batch in loader.batches(trainer.epoch, skip=trainer.batch):
                if config.max_steps is not None and trainer.step >= config.max_steps:
                    save_checkpoint(folder.last, trainer.checkpoint(config, manifest))
                    return losses
                row = trainer.take_step(batch)
                trainer.batch += 1
                losses.append(row["loss"])
                progress.advance(1, note=f"loss {row['loss']:.3f}  {note}")
                if trainer.step % _LOG_EVERY == 0 or trainer.step == 1:
                    log.append(_log_row(trainer, row))
            trainer.epoch, trainer.batch = trainer.epoch + 1, 0
            if validation is not None and _is_due(trainer.epoch, config):
                note = _validate(trainer, config, manifest, validation, folder, log)
            save_checkpoint(folder.last, trainer.checkpoint(config, manifest))
    if validation is None:
        save_checkpoint(folder.best, trainer.checkpoint(config, manifest))
    return losses


def log_columns(detector: Detector) -> tuple[str, ...]:
    """Of metrics.csv."""
    losses = (f"loss_{name}" for name in detector.loss_names)
    first = ("step", "epoch", "lr", "loss")
    return (*first, *losses, "grad_norm", "seconds", "val_ap", "val_ap50")


def _log_row(trainer: Trainer, row: dict[str, float]) -> dict[str, float | int]:
    return {
        "step": trainer.step,
        "epoch": trainer.epoch,
        "lr": trainer.optimizer.param_groups[0]["lr"],
        **row,
    }


def _validate(
    trainer: Trainer,
    config: TrainConfig,
    manifest: Manifest,
    validation: FeatureStore,
    folder: RunFolder,
    log: MetricsLog,
) -> str:
    """Score the detector, keep it as `best.pt` if it is the best so far; returns a short note."""
    started = time.perf_counter()
    scores = validate(trainer.detector, config, validation, device=trainer.device)
    seconds = time.perf_counter() - started
    log.append(
        {"step": trainer.step, "epoch": trainer.epoch, "val_ap": scores.ap,
         "val_ap50": scores.ap50, "seconds": seconds}
    )  # fmt: skip
    if scores.ap > trainer.best_ap:
        trainer.best_ap = scores.ap
        save_checkpoint(folder.best, trainer.checkpoint(config, manifest))
    note = _validation_note(scores, trainer.best_ap)
    folder.log(f"epoch {trainer.epoch} step {trainer.step}: {note}")
    return note


def validate(
    detector: Detector, config: TrainConfig, store: FeatureStore, *, device: torch.device
) -> CocoScores:
    """COCO figures of the detector on every picture of `store`."""
    detections = detect_store(
        detector,
        store,
        levels=choose_levels(config.detector, store.manifest.spec).names,
        batch_size=EvalConfig().batch_size,
        device=device,
    )
    return score_detections(store.truth, detections)


def _validation_note(scores: CocoScores | None, best_ap: float) -> str:
    if scores is None:
        return f"best AP {best_ap:.3f}" if best_ap >= 0 else ""
    return f"AP {scores.ap:.3f}  AP50 {scores.ap50:.3f}  best AP {best_ap:.3f}"


def _is_due(epochs_done: int, config: TrainConfig) -> bool:
    if epochs_done == config.schedule.epochs:
        return True
    return config.eval_every > 0 and epochs_done % config.eval_every == 0


def _start_or_continue(
    folder: RunFolder, config: TrainConfig, trainer: Trainer, manifest: Manifest, *, resume: bool
) -> RunFolder:
    if not resume:
        folder = RunFolder.create(folder.root)
        folder.config.write_text(dump_config(config), encoding="utf-8")
        folder.log(f"started; store fingerprint {manifest.fingerprint()}")
        folder.log(config.schedule.describe_lr())
        return folder
    RunFolder.open(folder.root)
    checkpoint = load_checkpoint(folder.last)
    _require_same_run(checkpoint, config, manifest, where=folder.last)
    trainer.restore(checkpoint)
    folder.log(f"resumed at step {trainer.step}")
    return folder


def _require_same_run(
    checkpoint: Checkpoint, config: TrainConfig, manifest: Manifest, *, where: Path
) -> None:
    """Resuming with other settings would silently be another run. Raises CheckpointError."""
    before = checkpoint.config.model_dump(exclude={"max_steps", "device", "eval_every"})
    now = config.model_dump(exclude={"max_steps", "device", "eval_every"})
    changed = [key for key in now if now[key] != before[key]]
    if changed:
        details = "; ".join(f"{key} was {before[key]}, is {now[key]}" for key in changed)
        raise CheckpointError(f"cannot resume {where}: the config differs: {details}")
    if checkpoint.manifest.fingerprint() != manifest.fingerprint():
        fields = "; ".join(checkpoint.manifest.differing_fields(manifest))
        raise CheckpointError(f"cannot resume {where}: it was trained on another store: {fields}")


def _require_same_features(train: Manifest, validation: Manifest) -> None:
    """Validation features must come from the same backbone and classes. Raises CheckpointError."""
    field = train.incompatible_field(validation)
    if field is not None:
        raise CheckpointError(
            f"the validation store differs in {field}: expected {getattr(train, field)}, got "
            f"{getattr(validation, field)}; extract both stores with the same options"
        )


def _require_masks(config: TrainConfig, store: FeatureStore) -> None:
    if config.detector.kind == "retinanet" or config.detector.mask_head is None:
        return
    if store.truth.masks is None:
        raise ConfigError(
            "detector.mask_head needs masks, the store's annotations have none; extract from an "
            "annotation file with `segmentation`, or remove detector.mask_head"
        )


def _open_complete(path: Path | str) -> FeatureStore:
    store = FeatureStore.open(path)
    store.require_complete()
    return store


def _count_steps(loader: FeatureLoader, config: TrainConfig) -> int:
    return sum(len(loader.plan(epoch)) for epoch in range(config.schedule.epochs))

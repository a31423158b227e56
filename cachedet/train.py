"""Stage 2: train neck and heads on cached features, without backbone, pictures or annotations."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cachedet.config import EvalConfig, ScheduleConfig, TrainConfig, dump_config
from cachedet.detector.build import build_detector, choose_levels
from cachedet.detector.retinanet import RetinaNet
from cachedet.device import choose_device
from cachedet.errors import CheckpointError, NonFiniteLossError
from cachedet.evaluation.inference import detect_store
from cachedet.evaluation.metrics import CocoScores, score_detections
from cachedet.evaluation.plots import plot_training
from cachedet.progress import StageProgress
from cachedet.store.manifest import Manifest
from cachedet.store.reader import FeatureStore
from cachedet.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cachedet.training.loader import Batch, FeatureLoader
from cachedet.training.metrics_log import MetricsLog
from cachedet.training.run_folder import RunFolder
from cachedet.training.schedule import LearningRate

LOG_COLUMNS = (
    "step", "epoch", "lr", "loss", "loss_class", "loss_box", "grad_norm", "seconds",
    "val_ap", "val_ap50",
)  # fmt: skip
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


@dataclass(kw_only=True, eq=False)
class Trainer:
    """Everything that changes while a run is trained."""

    detector: RetinaNet
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate
    batch_size: int  # pictures of a full step
    clip_norm: float
    device: torch.device
    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_ap: float = -1.0

    def take_step(self, batch: Batch) -> dict[str, float]:
        """One optimiser step. Raises NonFiniteLossError before anything has moved."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate.at(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        batch = batch.to(self.device)
        losses = self.detector(batch.features, batch.targets)
        # A bucket's last batch may be small; every picture weighs the same all the same.
        share = len(batch.targets) / self.batch_size
        total = torch.stack(list(losses.values())).sum() * share
        if bool(torch.isfinite(total)):
            torch.autograd.backward(total)
        norm = nn.utils.clip_grad_norm_(
            self.detector.parameters(), self.clip_norm if self.clip_norm > 0 else float("inf")
        )
        if not bool(torch.isfinite(total) & torch.isfinite(norm)):
            raise NonFiniteLossError(_describe_nonfinite(self.step, losses, norm, batch))
        self.optimizer.step()
        self.step += 1
        values = {f"loss_{name}": loss.item() for name, loss in losses.items()}
        return {"loss": sum(values.values()), **values, "grad_norm": norm.item()}

    def checkpoint(self, config: TrainConfig, manifest: Manifest) -> Checkpoint:
        return Checkpoint(
            step=self.step,
            epoch=self.epoch,
            batch=self.batch,
            best_ap=self.best_ap,
            heads=self.detector.state_dict(),
            optimizer=self.optimizer.state_dict(),
            torch_rng=torch.get_rng_state(),
            config=config,
            manifest=manifest,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        self.detector.load_state_dict(checkpoint.heads)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        torch.set_rng_state(checkpoint.torch_rng)
        self.step, self.epoch, self.batch = checkpoint.step, checkpoint.epoch, checkpoint.batch
        self.best_ap = checkpoint.best_ap


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
    torch.manual_seed(config.seed)
    loader = FeatureLoader(
        store,
        views=config.views or store.manifest.views,
        levels=choose_levels(config.detector, store.manifest.spec).names,
        batch_size=config.schedule.batch_size,
        seed=config.seed,
        device=choose_device(config.device),
    )
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


def make_trainer(config: TrainConfig, *, manifest: Manifest, total_steps: int) -> Trainer:
    """The detector, its optimiser and schedule for features described by `manifest`."""
    device = choose_device(config.device)
    detector = build_detector(
        config.detector, spec=manifest.spec, num_classes=len(manifest.categories)
    ).to(device)
    schedule = config.schedule
    return Trainer(
        detector=detector,
        optimizer=_make_optimizer(detector, schedule),
        learning_rate=LearningRate(
            peak=schedule.lr,
            total_steps=total_steps,
            warmup_steps=min(schedule.warmup_steps, total_steps // 2),
            kind=schedule.kind,
            drops=schedule.drops,
        ),
        batch_size=schedule.batch_size,
        clip_norm=schedule.clip_norm,
        device=device,
    )


def _make_optimizer(detector: nn.Module, schedule: ScheduleConfig) -> torch.optim.Optimizer:
    """Weight decay on kernels only: biases and norms are left free (PAPER 2.2)."""
    kernels = [p for p in detector.parameters() if p.ndim > 1]
    others = [p for p in detector.parameters() if p.ndim <= 1]
    groups = [
        {"params": kernels, "weight_decay": schedule.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=schedule.lr, betas=(schedule.momentum, 0.999))
    return torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum)


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
    log = MetricsLog(folder.metrics, LOG_COLUMNS, keep_until_step=trainer.step)
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
    detector: RetinaNet, config: TrainConfig, store: FeatureStore, *, device: torch.device
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


def _open_complete(path: Path | str) -> FeatureStore:
    store = FeatureStore.open(path)
    store.require_complete()
    return store


def _count_steps(loader: FeatureLoader, config: TrainConfig) -> int:
    return sum(len(loader.plan(epoch)) for epoch in range(config.schedule.epochs))


def _describe_nonfinite(step: int, losses: dict[str, Tensor], norm: Tensor, batch: Batch) -> str:
    bad_levels = [n for n, maps in batch.features.items() if not bool(torch.isfinite(maps).all())]
    values = ", ".join(f"{name} {loss.item():g}" for name, loss in losses.items())
    largest = {name: float(maps.abs().max()) for name, maps in batch.features.items()}
    where = (
        f"the features of {', '.join(bad_levels)} are not finite"
        if bad_levels
        else "all features are finite, largest: "
        + ", ".join(f"{name} {value:.3g}" for name, value in largest.items())
    )
    return (
        f"step {step}: loss or gradient is not finite (losses {values}; gradient norm "
        f"{norm.item():g}) on image ids {batch.image_ids}; {where}. Nothing was updated; the last "
        "checkpoint is whole. Lower schedule.lr, or set schedule.clip_norm"
    )

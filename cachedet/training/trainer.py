"""Everything that changes while a run is trained, and one optimiser step of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cachedet.config import ScheduleConfig, TrainConfig
from cachedet.detector.build import Detector, build_detector
from cachedet.device import choose_device
from cachedet.errors import NonFiniteLossError
from cachedet.store.manifest import Manifest
from cachedet.training.checkpoint import Checkpoint
from cachedet.training.loader import Batch
from cachedet.training.schedule import LearningRate


@dataclass(kw_only=True, eq=False)
class Trainer:
    """Everything that changes while a run is trained."""

    detector: Detector
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


def make_trainer(config: TrainConfig, *, manifest: Manifest, total_steps: int) -> Trainer:
    """The detector, its optimiser and schedule for features described by `manifest`."""
    device = choose_device(config.device)
    detector = build_detector(
        config.detector, spec=manifest.spec, num_classes=len(manifest.categories)
    ).to(device)
    detector.to(memory_format=torch.channels_last)
    if config.compile:
        for part in detector.parts():
            part.compile()
    schedule = config.schedule
    return Trainer(
        detector=detector,
        optimizer=_make_optimizer(detector, schedule),
        learning_rate=LearningRate(
            peak=schedule.scaled_lr,
            total_steps=total_steps,
            warmup_steps=min(schedule.warmup_steps, total_steps // 2),
            kind=schedule.kind,
            drops=schedule.drops,
            warmup_from=schedule.warmup_from,
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
        return torch.optim.AdamW(groups, lr=schedule.scaled_lr, betas=(schedule.momentum, 0.999))
    return torch.optim.SGD(groups, lr=schedule.scaled_lr, momentum=schedule.momentum)


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

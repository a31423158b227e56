"""Everything that changes while a run is trained, and one optimiser step of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cachedet.compiler import compiling
from cachedet.config.run import TrainConfig
from cachedet.config.schedule import LearningRate
from cachedet.detector.build import build_detector
from cachedet.detector.end_to_end import EndToEndDetector
from cachedet.detector.protocol import (
    classifiers_of,
    compute_losses,
    normalizes_over_ranks,
    parts_of,
    require_detector,
)
from cachedet.device import choose_device
from cachedet.distributed.collective import single_process, sum_over_ranks, world_size
from cachedet.distributed.data_parallel import of_ranks, sum_gradients
from cachedet.errors import ConfigError, NonFiniteLossError
from cachedet.store.format.manifest import Manifest
from cachedet.structures import Batch
from cachedet.training.checkpoint import Checkpoint
from cachedet.training.optimizer import (
    WeightAverage,
    choose_autocast,
    freeze_all_but,
    make_optimizer,
    make_scaler,
    set_training_mode,
)
from cachedet.training.restoring import fitting, load_optimizer, load_weights
from cachedet.training.stopping import EarlyStopping

_SMALLEST_SCALE = 1.0  # of fp16 gradients; one that overflows unscaled will not get better


@dataclass(kw_only=True, eq=False)
class StepStatistics:
    """Sums over steps. Losses are weighted by images, so that a small step counts little."""

    images: int = 0
    seconds: float = 0.0  # of the steps, waiting included; without validations and saving
    waiting: float = 0.0  # seconds in which the next batch was not there yet
    loss_sums: dict[str, float] = field(default_factory=dict)  # mean of a step times its images

    @classmethod
    def of_step(
        cls, losses: Mapping[str, float], *, images: int, seconds: float, waiting: float
    ) -> StepStatistics:
        """One step; `losses` are means over its images."""
        sums = {name: value * images for name, value in losses.items()}
        return cls(images=images, seconds=seconds, waiting=waiting, loss_sums=sums)

    def merge(self, later: StepStatistics) -> None:
        """Count the steps of `later` too."""
        self.images += later.images
        self.seconds += later.seconds
        self.waiting += later.waiting
        for name, summed in later.loss_sums.items():
            self.loss_sums[name] = self.loss_sums.get(name, 0.0) + summed

    def means(self) -> dict[str, float]:
        """The losses by name; empty before the first step."""
        return {name: value / self.images for name, value in self.loss_sums.items()}

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else 0.0

    @property
    def waiting_share(self) -> float:
        """Of the time, in 0..1."""
        return self.waiting / self.seconds if self.seconds > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> StepStatistics:
        """What `state_dict` gave. Raises TypeError, ValueError on anything else."""
        sums = {str(name): float(value) for name, value in state.get("loss_sums", {}).items()}
        counts = {name: float(value) for name, value in state.items() if name != "loss_sums"}
        images = int(counts.pop("images", 0))
        if images < 0 or not all(map(math.isfinite, (*sums.values(), *counts.values()))):
            raise ValueError(f"sums over {images} images that are not finite")
        return cls(images=images, loss_sums=sums, **counts)


@dataclass(kw_only=True, eq=False)
class Trainer:
    """Everything that changes while a run is trained."""

    detector: nn.Module  # see detector/protocol.py
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate
    step_images: int  # of a whole step
    clip_norm: float  # 0: none
    device: torch.device
    autocast: torch.dtype | None = None  # None: float32
    scaler: torch.amp.GradScaler | None = None  # of fp16
    average: WeightAverage | None = None
    stopping: EarlyStopping | None = None
    step: int = 0  # optimiser steps
    epoch: int = 0
    batch: int = 0  # of the epoch, the next one
    best_ap: float = -1.0
    seconds: float = 0.0  # of all steps, waiting for their batches included
    epoch_statistics: StepStatistics = field(default_factory=StepStatistics)
    _pending: list[Batch] = field(default_factory=list, init=False)  # of the step under way
    _pending_images: int = field(default=0, init=False)  # of all processes
    _pending_sums: dict[str, float] = field(default_factory=dict, init=False)

    def take_step(self, batch: Batch) -> dict[str, float]:
        """One optimiser step on one batch; see `add_gradients` and `finish_step`."""
        self.add_gradients(batch)
        return self.finish_step()

    def add_gradients(self, batch: Batch) -> None:
        """Forward and backward of one batch of the step, weighted by its images.

        With several processes, this one's part of the loss and of the gradient: the sums over
        processes are those of the global batch. A batch that every process has whole is computed
        by each for itself, and counts in parts.

        Raises NonFiniteLossError, on every process, before anything has moved; ConfigError where
        torch cannot compile what the config wants compiled.
        """
        batch = batch.to(self.device)
        copies = world_size() if batch.is_whole else 1
        with single_process(batch.is_whole):
            with (
                torch.autocast(
                    self.device.type, dtype=self.autocast, enabled=self.autocast is not None
                ),
                compiling("neck and heads", error=ConfigError, otherwise="set compile: false"),
            ):
                losses = compute_losses(self.detector, batch.features, batch.targets)
            stacked = torch.stack(list(losses.values()))
            if not (batch.is_whole or normalizes_over_ranks(self.detector)):
                stacked = stacked * (len(batch.targets) / batch.global_images)
            reached = sum_over_ranks(stacked.detach())
        # A bucket's last batch may be small; every image weighs the same all the same.
        share = batch.global_images / self.step_images
        if not bool(torch.isfinite(reached.sum() * share)):
            is_own = not bool(torch.isfinite(stacked.sum() * share))
            raise NonFiniteLossError(
                of_ranks(self._describe([batch], losses=losses) if is_own else "")
            )
        total = stacked.sum() * (share / copies)
        torch.autograd.backward(total if self.scaler is None else self.scaler.scale(total))
        for name, value in zip(losses, reached.tolist(), strict=True):
            summed = self._pending_sums.get(name, 0.0) + value * batch.global_images
            self._pending_sums[name] = summed
        self._pending.append(batch)
        self._pending_images += batch.global_images

    def finish_step(self) -> dict[str, float]:
        """Move the weights by the gradients that were added.

        Returns the step's losses, which are means over its images, and its gradient norm.

        Raises NonFiniteLossError before anything has moved. A gradient that overflows fp16 is no
        error: the step is left out and the scale halved.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate.at(self.step) * group["lr_scale"]
        sum_gradients(self.detector.parameters())
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(
            self.detector.parameters(), self.clip_norm if self.clip_norm > 0 else float("inf")
        )
        self._move(norm)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.average is not None:
            self.average.update(self.detector, step=self.step)
        values = {
            f"loss_{name}": summed / self._pending_images
            for name, summed in self._pending_sums.items()
        }
        self._pending, self._pending_images, self._pending_sums = [], 0, {}
        return {"loss": sum(values.values()), **values, "grad_norm": norm.item()}

    def scored_weights(self) -> AbstractContextManager[None]:
        """Inside, the detector has the weights that are validated: the average where there is."""
        return nullcontext() if self.average is None else self.average.applied_to(self.detector)

    def finish_epoch(self) -> None:
        """Go to the first batch of the next epoch."""
        self.epoch, self.batch = self.epoch + 1, 0
        self.epoch_statistics = StepStatistics()

    def checkpoint(self, config: TrainConfig, manifest: Manifest) -> Checkpoint:
        """The state between two steps."""
        return Checkpoint(
            step=self.step,
            epoch=self.epoch,
            batch=self.batch,
            best_ap=self.best_ap,
            seconds=self.seconds,
            heads=self.detector.state_dict(),
            average=None if self.average is None else self.average.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scaler=None if self.scaler is None else self.scaler.state_dict(),
            stopping=None if self.stopping is None else self.stopping.state_dict(),
            epoch_statistics=self.epoch_statistics.state_dict(),
            torch_rng=torch.get_rng_state(),
            config=config,
            manifest=manifest,
        )

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Begin with the weights that another run was scored with, and nothing else of it.

        Stages behind heads that were trained on a frozen backbone keep those of the store.
        """
        detector = self.detector
        if isinstance(detector, EndToEndDetector) and checkpoint.config.freeze_at is None:
            load_weights(detector.heads, checkpoint.scored_heads, where=checkpoint.name)
        else:
            load_weights(detector, checkpoint.scored_heads, where=checkpoint.name)
        if self.average is not None:
            self.average.load_state_dict(self.detector.state_dict())

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where `checkpoint` was made, by a trainer of the same config.

        Raises CheckpointError where a part of it does not fit.
        """
        where = checkpoint.name
        load_weights(self.detector, checkpoint.heads, where=where)
        if self.average is not None and checkpoint.average is not None:
            self.average.load_state_dict(checkpoint.average, where=where)
        with fitting("optimizer", where=where):
            is_scaled = checkpoint.scaler is not None  # all steps may have been left out
            needs_state = checkpoint.step > 0 and not is_scaled
            load_optimizer(self.optimizer, checkpoint.optimizer, needs_state=needs_state)
        if self.scaler is not None and checkpoint.scaler is not None:
            with fitting("scaler", where=where):
                self.scaler.load_state_dict(checkpoint.scaler)
        if self.stopping is not None:
            with fitting("early stopping", where=where):
                self.stopping.load_state_dict(checkpoint.stopping)
        with fitting("epoch_statistics", where=where):
            self.epoch_statistics = StepStatistics.of_state(checkpoint.epoch_statistics)
            if checkpoint.batch > 0 and "loss" not in self.epoch_statistics.means():
                raise ValueError(f"batch {checkpoint.batch} of an epoch without a loss before")
        with fitting("torch_rng", where=where):
            torch.set_rng_state(checkpoint.torch_rng)
        self.step, self.epoch, self.batch = checkpoint.step, checkpoint.epoch, checkpoint.batch
        self.best_ap, self.seconds = checkpoint.best_ap, checkpoint.seconds

    def _describe(
        self, batches: list[Batch], *, losses: dict[str, Tensor] | None = None, norm: float = 0.0
    ) -> str:
        """What was not finite, and whether features or weights are to blame."""
        values = ", ".join(f"{name} {loss.item():g}" for name, loss in (losses or {}).items())
        what = f"losses {values}" if losses else f"gradient norm {norm:g}"
        ids = [image_id for batch in batches for image_id in batch.image_ids]
        return (
            f"step {self.step}: loss or gradient is not finite ({what}) on image ids {ids}; "
            f"{_describe_features(batches)}{_describe_weights(self.detector)}. "
            "Nothing was updated; the last checkpoint is whole. Lower schedule.lr, or set "
            "schedule.clip_norm"
        )

    def _move(self, norm: Tensor) -> None:
        is_finite = bool(torch.isfinite(norm))
        if self.scaler is None:
            if not is_finite:
                raise NonFiniteLossError(of_ranks(self._describe(self._pending, norm=norm.item())))
            self.optimizer.step()
            return
        self.scaler.step(self.optimizer)  # leaves out a step that overflowed
        self.scaler.update()
        if not is_finite and self.scaler.get_scale() < _SMALLEST_SCALE:
            raise NonFiniteLossError(
                f"step {self.step}: gradients overflow fp16 even unscaled; set precision: bf16 or "
                "fp32, lower schedule.lr, or set schedule.clip_norm"
            )


def make_trainer(
    config: TrainConfig, *, manifest: Manifest, total_steps: int, detector: nn.Module | None = None
) -> Trainer:
    """The detector, its optimiser and schedule for features described by `manifest`.

    `detector` takes the place of what the config describes. Raises ConfigError where the detector
    does not fit the features, or the device not the precision.
    """
    if detector is None:
        detector = build_detector(
            config.detector, spec=manifest.spec, num_classes=len(manifest.categories)
        )
    return make_trainer_of(detector, config, total_steps=total_steps)


def make_trainer_of(detector: nn.Module, config: TrainConfig, *, total_steps: int) -> Trainer:
    """Optimiser and schedule for a detector that was built before.

    Raises ConfigError where the device does not exist, or has not the precision.
    """
    device = choose_device(config.device)
    autocast = choose_autocast(config.precision, device)
    detector = require_detector(detector).to(device)
    detector.to(memory_format=torch.channels_last)
    if config.trainable == "classifier":
        freeze_all_but(detector, classifiers_of(detector))
    set_training_mode(detector)
    if config.compile:
        for part in parts_of(detector):
            part.compile()
    schedule, stopping = config.schedule, config.early_stopping
    return Trainer(
        detector=detector,
        optimizer=make_optimizer(detector, schedule),
        learning_rate=LearningRate(
            peak=schedule.scaled_lr,
            total_steps=total_steps,
            warmup_steps=schedule.warmup_steps,
            kind=schedule.kind,
            drops=schedule.drops,
            warmup_from=schedule.warmup_from,
        ),
        step_images=schedule.step_images,
        clip_norm=schedule.clip_norm,
        device=device,
        autocast=autocast,
        scaler=make_scaler(autocast, device),
        average=WeightAverage(detector, decay=schedule.ema_decay) if schedule.ema_decay else None,
        stopping=EarlyStopping(**stopping.model_dump()) if stopping else None,
    )


def _describe_features(batches: list[Batch]) -> str:
    largest: dict[str, float] = {}
    bad_levels = set()
    for batch in batches:
        for name, maps in batch.features.items():
            largest[name] = max(largest.get(name, 0.0), float(maps.abs().max()))
            if not bool(torch.isfinite(maps).all()):
                bad_levels.add(name)
    if bad_levels:
        return f"the features of {', '.join(sorted(bad_levels))} are not finite"
    return "all features are finite, largest: " + ", ".join(
        f"{name} {value:.3g}" for name, value in largest.items()
    )


def _describe_weights(detector: nn.Module) -> str:
    """Nothing where all are finite."""
    trained = detector.named_parameters()  # running statistics went with the losses
    bad = [name for name, value in trained if not bool(torch.isfinite(value).all())]
    return f"; the weights of {', '.join(bad[:3])} are not finite ({len(bad)})" if bad else ""

"""What of the detector is trained, and by which optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cachedet.config import ScheduleConfig
from cachedet.detector.whole import Trained, WholeDetector


def freeze_all_but(detector: nn.Module, trained: Sequence[nn.Module]) -> None:
    """Everything of `detector` that is not in `trained` keeps its weights."""
    detector.requires_grad_(False)
    for part in trained:
        part.requires_grad_(True)


def set_training_mode(detector: nn.Module) -> None:
    """Training mode, in which norms that are frozen keep their running statistics too."""
    detector.train()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()


def count_trained(detector: nn.Module) -> int:
    """Parameters that training changes."""
    return sum(p.numel() for p in detector.parameters() if p.requires_grad)


def make_optimizer(detector: Trained, schedule: ScheduleConfig) -> torch.optim.Optimizer:
    """Of what is not frozen; weight decay on kernels only, not on biases and norms (PAPER 2.2).

    A group's `lr_scale` is its learning rate as a share of the schedule's.
    """
    whole = detector if isinstance(detector, WholeDetector) else None
    groups = _groups(whole.heads if whole else detector, schedule, lr_scale=1.0)
    if whole is not None and whole.learnt is not None:
        groups += _groups(whole.learnt, schedule, lr_scale=whole.lr_scale)
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=schedule.scaled_lr, betas=(schedule.momentum, 0.999))
    return torch.optim.SGD(groups, lr=schedule.scaled_lr, momentum=schedule.momentum)


def _groups(
    module: nn.Module, schedule: ScheduleConfig, *, lr_scale: float
) -> list[dict[str, Any]]:
    trained = [p for p in module.parameters() if p.requires_grad]
    kernels = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    return [
        {"params": kernels, "weight_decay": schedule.weight_decay, "lr_scale": lr_scale},
        {"params": others, "weight_decay": 0.0, "lr_scale": lr_scale},
    ]

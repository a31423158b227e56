"""What of the detector is trained, and by which optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cachedet.config import ScheduleConfig


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


def make_optimizer(detector: nn.Module, schedule: ScheduleConfig) -> torch.optim.Optimizer:
    """Of what is not frozen; weight decay on kernels only, not on biases and norms (PAPER 2.2)."""
    trained = [p for p in detector.parameters() if p.requires_grad]
    kernels = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": kernels, "weight_decay": schedule.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=schedule.scaled_lr, betas=(schedule.momentum, 0.999))
    return torch.optim.SGD(groups, lr=schedule.scaled_lr, momentum=schedule.momentum)

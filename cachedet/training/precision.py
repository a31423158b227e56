"""Which number format neck and heads compute in."""

from __future__ import annotations

from typing import Literal

import torch

from cachedet.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16", "auto"]


def choose_autocast(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype of `torch.autocast`, or None for float32 throughout.

    `auto` is bf16 on a CUDA device that has it, fp16 on an older one, and fp32 elsewhere: CPUs
    without bf16 units only emulate it.

    Raises ConfigError where the device does not have the format.
    """
    if precision == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if _has_bf16(device) else torch.float16
    if precision == "fp32":
        return None
    known = {"cuda": ("fp16", "bf16"), "cpu": ("bf16",)}.get(device.type, ())
    if precision not in known or (precision == "bf16" and not _has_bf16(device)):
        raise ConfigError(
            f"precision {precision} is not there on device {device}: fp16 needs CUDA, bf16 a CPU "
            "or a CUDA device of compute capability 8.0 or newer; set precision: auto or fp32"
        )
    return torch.bfloat16 if precision == "bf16" else torch.float16


def make_scaler(autocast: torch.dtype | None, device: torch.device) -> torch.amp.GradScaler | None:
    """fp16 alone needs its gradients scaled into range (arXiv 1710.03740)."""
    return torch.amp.GradScaler(device.type) if autocast is torch.float16 else None


def _has_bf16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)

"""Which device and cores a stage runs on."""

from __future__ import annotations

import os

import torch

from cachedet.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """``auto`` -> CUDA, MPS or the CPU, in this order; else the device named.

    Of several CUDA devices `auto` and `cuda` take that of this process's rank on its machine.

    Raises ConfigError where the device does not exist on this machine.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
        return torch.device("cuda", local % torch.cuda.device_count())
    if name == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device {name!r} cannot be used here: {reason}; try --device auto"
        ) from error
    return device


def usable_cores() -> int | None:
    """CPU cores this process may run on; None where the system does not say (macOS, Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None

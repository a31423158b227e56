"""How weights move: what of a detector is trained, by which optimiser, rate, average and precision.

The Trainer (trainer.py) puts these parts together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cachedet.config.run import Precision
from cachedet.config.schedule import ScheduleConfig
from cachedet.detector.protocol import lr_scales_of
from cachedet.errors import ConfigError
from cachedet.training.restoring import load_weights


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
    """For what is not frozen; weight decay on kernels only, not on biases and norms (PAPER 2.2).

    A group's `lr_scale` is its learning rate as a share of the schedule's.
    """
    groups = [
        group
        for module, lr_scale in lr_scales_of(detector)
        for group in _groups(module, schedule, lr_scale=lr_scale)
    ]
    if schedule.optimizer == "adamw":
        betas = (schedule.momentum, 0.999)
        return torch.optim.AdamW(groups, lr=schedule.scaled_lr, betas=betas, fused=True)
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


class WeightAverage:
    """A float32 average of a module's weights and running statistics; counters are copied."""

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self._decay = decay  # share that a step keeps, once `warm_decay` reaches it
        self._share = 0.0  # of the module's weights in the next average
        device = next(module.parameters()).device
        model = AveragedModel(module, device=device, avg_fn=self._mix, use_buffers=True)
        self._average = model.float()
        self._average.n_averaged.fill_(1)  # else the first update would forget where it starts

    def update(self, module: nn.Module, *, step: int) -> None:
        """Take in the weights that `module` has after `step` steps."""
        self._share = 1 - warm_decay(self._decay, step)
        self._average.update_parameters(module)

    @contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[None]:
        """Inside, `module` has the averaged weights; afterwards its own ones again, bit for bit."""
        before = {name: value.clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.state_dict())
        try:
            yield
        finally:
            module.load_state_dict(before)

    def state_dict(self) -> dict[str, Tensor]:
        """The average, in the names of the module's state."""
        state: dict[str, Tensor] = self._average.module.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any], *, where: str = "the average") -> None:
        """Continue from a saved average of the same module. Raises CheckpointError."""
        load_weights(self._average.module, state, where=where)

    def _mix(self, average: Tensor, current: Tensor, _: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return current
        return average.lerp(current.to(average.dtype), self._share)


def warm_decay(decay: float, step: int) -> float:
    """The decay after `step` steps: small at first, so that short runs forget their beginning."""
    return min(decay, (1 + step) / (10 + step))


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
    """A scaler for fp16, which alone needs its gradients scaled into range (arXiv 1710.03740)."""
    return torch.amp.GradScaler(device.type) if autocast is torch.float16 else None


def _has_bf16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)

"""Giving a detector and an optimiser what a checkpoint holds, where it fits them."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cachedet.errors import CheckpointError

# What torch must keep of each parameter for the next step to be the one that would have come.
_STATE: dict[type, frozenset[str]] = {
    torch.optim.SGD: frozenset({"momentum_buffer"}),
    torch.optim.AdamW: frozenset({"step", "exp_avg", "exp_avg_sq"}),
}
_SETTINGS = ("params", "weight_decay", "lr_scale", "momentum", "betas")  # of a group, where it has


def load_weights(module: nn.Module, weights: Mapping[str, Any], *, where: str) -> None:
    """Give a module the weights of a checkpoint, which messages call `where`.

    Raises CheckpointError where they do not fit, or are not finite.
    """
    own = module.state_dict()
    problem = _misfit(own, weights)
    if problem:
        raise CheckpointError(
            f"the weights of {where} do not fit {type(module).__name__}: {problem}; give the "
            "detector that was trained, made with the same arguments, or a checkpoint of this one"
        )
    for name, value in weights.items():
        # A buffer that is infinite from the start, such as a mask, is meant.
        if not _is_finite(value.to(own[name].dtype)) and _is_finite(own[name]):
            raise CheckpointError(
                f"the weights of {where} are not finite (NaN or infinite: {name}), so that nothing "
                "can be detected with them; take another checkpoint of the run, or train again"
            )
    module.load_state_dict(weights)


def load_optimizer(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], *, needs_state: bool
) -> None:
    """Go on with a saved state; `needs_state`: steps have been taken, so there is one.

    Raises ValueError where it is that of other parameters, or lacks something.
    """
    now = optimizer.state_dict()["param_groups"]
    groups, states = state["param_groups"], state["state"]
    if len(groups) != len(now):
        raise ValueError(f"it has {len(groups)} groups of parameters, expected {len(now)}")
    for group, own in zip(groups, now, strict=True):
        changed = [key for key in _SETTINGS if key in own and group[key] != own[key]]
        if changed:
            raise ValueError(f"its groups of parameters differ in {', '.join(changed)}")
        lr = group["lr"]
        if not isinstance(lr, int | float) or not 0 <= lr < float("inf"):
            raise ValueError(f"lr of a group of parameters is {reprlib.repr(lr)}, expected a rate")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    expected = _STATE[type(optimizer)]
    for index, values in states.items():
        if set(values) != expected:
            raise ValueError(f"parameter {index} has {sorted(values)}, expected {sorted(expected)}")
        for name, value in values.items():
            _require_of(parameters[index], value, name=f"{name} of parameter {index}")
    keeps_state = any(group.get("momentum", 1) for group in now)
    if needs_state and keeps_state and not states:
        raise ValueError("it is empty after steps were taken")
    optimizer.load_state_dict(dict(state))


@contextmanager
def fitting(what: str, *, where: str) -> Iterator[None]:
    """Inside, errors of any kind say that this part of a checkpoint does not fit."""
    try:
        yield
    except CheckpointError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(
            f"cannot resume from {where}: its {what} does not fit this run "
            f"({type(error).__name__}: {reason}); expected what `train-heads` saved for the same "
            "config. Move the file away to go on from previous.pt, or start again with another "
            "--run (--init-from takes weights alone)"
        ) from error


def _misfit(own: Mapping[str, Tensor], weights: Mapping[str, Any]) -> str:
    """The first difference in names, shapes and kinds of numbers; empty where there is none."""
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or extra:
        parts = [f"it lacks {', '.join(missing[:3])}"] if missing else []
        parts += [f"it has {', '.join(extra[:3])} beside"] if extra else []
        return " and ".join(parts)
    for name, value in weights.items():
        expected = own[name]
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
            return f"{name} is no plain tensor"
        if value.shape != expected.shape:
            return f"{name} has shape {tuple(value.shape)}, expected {tuple(expected.shape)}"
        is_kind = value.is_floating_point() and expected.is_floating_point()
        if not is_kind and value.dtype != expected.dtype:
            return f"{name} is {value.dtype}, expected {expected.dtype}"
    return ""


def _require_of(parameter: Tensor, value: Any, *, name: str) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor) or value.shape not in (parameter.shape, torch.Size()):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} has shape {shape}, expected {tuple(parameter.shape)}")
    if not (value.is_floating_point() and _is_finite(value)):
        raise ValueError(f"{name} is not finite")
    if name.startswith(("exp_avg_sq", "step")) and bool((value < 0).any()):
        raise ValueError(f"{name} is negative")


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())

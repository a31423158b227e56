"""What the parts of a detector compute, asked of themselves: for `cachedet model`.

A method `costs(features)` returns them; each part gets new leaves, so that its backward is its own.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from cachedet.detector.protocol import CostedPart
from cachedet.structures import Features


def neck_costs(
    adapters: nn.Module, neck: nn.Module, features: Features
) -> tuple[list[CostedPart], Features]:
    """Adapters, where there are any, and neck; and the P levels they make of C levels."""
    parts = []
    adapted = adapters(dict(features))
    if any(True for _ in adapters.parameters()):
        run = partial(adapters, dict(features))
        parts.append(CostedPart(name="adapters", module=adapters, forward=run, step=run))
        adapted = _leaves(adapted)
    run = partial(neck, adapted)
    parts.append(CostedPart(name="neck", module=neck, forward=run, step=run))
    return parts, _leaves(neck(adapted))


def roi_head_cost(
    name: str, head: nn.Module, *, sampled: int, proposed: int, channels: int, side: int
) -> CostedPart:
    """A head on RoIs: a step trains on at most `sampled` of them, a forward takes `proposed`."""

    def run(count: int) -> object:
        device = next(head.parameters()).device
        rois = torch.empty(count, channels, side, side, device=device, requires_grad=True)
        return head(rois)

    return CostedPart(
        name=name, module=head, forward=partial(run, proposed), step=partial(run, sampled)
    )


def _leaves(maps: Features) -> Features:
    return {name: level.detach().requires_grad_() for name, level in maps.items()}

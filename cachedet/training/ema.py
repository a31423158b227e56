"""Exponential moving average of a detector's weights; the paper itself uses none (PAPER 2.2).

The average is taken over the whole state: weights and running statistics of norms, which belong
together; counters are copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def warm_decay(decay: float, step: int) -> float:
    """The decay after `step` steps: small at first, so that short runs forget their beginning."""
    return min(decay, (1 + step) / (10 + step))


class WeightAverage:
    """A float32 average of every floating tensor of a module's state.

    Args:
        module: whose state the average starts from.
        decay: share of the old average that a step keeps, in 0..1, once `warm_decay` reaches it.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self._average = {
            name: value.detach().to(torch.float32 if value.is_floating_point() else None, copy=True)
            for name, value in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self, module: nn.Module, *, step: int) -> None:
        """Take in the weights that `module` has after `step` steps."""
        share = 1 - warm_decay(self.decay, step)
        for name, value in module.state_dict().items():
            average = self._average[name]
            if average.is_floating_point():
                average.lerp_(value.to(average.dtype), share)
            else:
                average.copy_(value)

    @contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[None]:
        """Inside, `module` has the averaged weights; afterwards its own ones again, bit for bit."""
        own = {name: value.clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self._average)
        try:
            yield
        finally:
            module.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The average, in the names of the module's state."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a saved average of the same module."""
        for name, average in self._average.items():
            average.copy_(state[name])

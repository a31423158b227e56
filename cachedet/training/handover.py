"""Batches made in a background thread, handed to the thread that trains.

On CUDA they are copied and decoded in a stream of their own, beside the step before: who takes one
waits for its event on the device, not on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cachedet.training.batch import Batch


@dataclass(frozen=True, kw_only=True, eq=False)
class Ready:
    """A batch whose tensors may still be in the making on the device."""

    batch: Batch
    event: torch.cuda.Event | None = None  # happens when they are made


class Handover:
    """One side stream on CUDA; on any other device nothing."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def make(self, make: Callable[[], Batch]) -> Ready:
        """Call `make` with the side stream as the current one of this thread."""
        if self._stream is None:
            return Ready(batch=make())
        with torch.cuda.stream(self._stream):
            batch = make()
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        return Ready(batch=batch, event=event)

    def take(self, ready: Ready) -> Batch:
        """The batch, for the current stream of this thread."""
        if ready.event is not None and self._stream is not None:
            current = torch.cuda.current_stream(self._stream.device)
            current.wait_event(ready.event)
            for tensor in _tensors_of(ready.batch):
                tensor.record_stream(current)  # else its memory could be used again too early
        return ready.batch


def _tensors_of(batch: Batch) -> Iterator[Tensor]:
    yield from batch.features.values()
    for targets in batch.targets:
        yield from (targets.boxes, targets.labels, targets.crowd)

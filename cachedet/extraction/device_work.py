"""What a GPU does side by side: copies to it, the backbone, and encoding.

What is given to one stream of a CUDA device is done in order; streams do not wait for each other.
Copies have one, the backbone that of its thread, and each encoding thread its own. Whoever gives a
device work is not held up by it. On a CPU all of this is nothing: one thing follows the other.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor


class Uploads:
    """Copies batches to a device while it computes on others."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, images: Tensor) -> Tensor:
        """The batch for the current stream of this thread; on a CPU the very one."""
        if self._stream is None:
            return images.to(self._device)
        with torch.cuda.stream(self._stream):
            there = images.to(self._device, non_blocking=True)  # pinned memory is kept until then
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        there.record_stream(current)  # else its memory could be used again too early
        return there


def take_own_stream(device: torch.device) -> None:
    """What this thread gives the device from now on waits for nothing but what it gave before."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


class Stretch:
    """What a thread gives a device inside a `with` block; any thread may wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> Stretch:
        self._began = self._mark()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = self._mark()

    def wait(self) -> float:
        """Return when it is done: the seconds that it took there."""
        if self._device.type == "cuda":
            self._ended.synchronize()
            return float(self._began.elapsed_time(self._ended)) / 1000
        return float(self._ended - self._began)

    def _mark(self) -> Any:
        """An event that happens when all before it is done, or a time."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

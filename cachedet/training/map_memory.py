"""Memory that decoded batches on a CPU lie in, used again once nobody holds their maps."""

from __future__ import annotations

import math
import mmap
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from cachedet.store.codec import Shape
from cachedet.structures import Features

_LARGE = (
    8 << 20
)  # bytes of a batch from which on memory is kept: malloc keeps smaller pieces itself
_MOST_IDLE = 2  # pieces kept for the next batches


class MapMemory:
    """Makes empty maps; to fault in fresh memory takes as long as to decode into it.

    Large batches lie in huge pages where Linux has them. A piece comes back when the last map in
    it is gone, from whatever thread that happens in.
    """

    def __init__(self) -> None:
        self._idle: deque[mmap.mmap] = deque(maxlen=_MOST_IDLE)  # the oldest leaves for good

    def take(self, count: int, shapes: Mapping[str, Shape]) -> Features:
        """Maps (n, C, h, w) float32 of each level, channels last, with anything in them."""
        lengths = {level: count * math.prod(shape) for level, shape in shapes.items()}
        values = self._values(sum(lengths.values()))
        maps, start = {}, 0
        for level, (channels, height, width) in shapes.items():
            cells = values[start : start + lengths[level]].view(count, height, width, channels)
            maps[level] = cells.permute(0, 3, 1, 2)
            start += lengths[level]
        return maps

    def _values(self, length: int) -> Tensor:
        nbytes = 4 * length
        if nbytes < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.empty(length)
        memory = self._reuse(nbytes) or _new_memory(nbytes)
        array = np.frombuffer(memory, dtype=np.float32, count=length)
        weakref.finalize(array, self._idle.append, memory).atexit = False
        return torch.from_numpy(array)

    def _reuse(self, nbytes: int) -> mmap.mmap | None:
        """An idle piece that is large enough, and not twice as large."""
        for _ in range(len(self._idle)):
            with suppress(IndexError):  # another thread was faster
                memory = self._idle.popleft()
                if nbytes <= len(memory) < 2 * nbytes:
                    return memory
                self._idle.append(memory)
        return None


def _new_memory(nbytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory

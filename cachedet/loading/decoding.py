"""From encoded parts to the maps of a batch: the memory both lie in, and the way between them.

Letters: n images, C channels, h w feature cells.
"""

from __future__ import annotations

import math
import mmap
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cachedet.store.codecs.codec import Shape
from cachedet.store.format.chunks import EncodedFeatures
from cachedet.store.reader import FeatureStore
from cachedet.structures import Features, SizeHW

_LARGE = 8 << 20  # bytes of a batch from which on memory is kept: malloc keeps smaller pieces
_MOST_IDLE = 2  # pieces kept for the next batches

A = TypeVar("A")
B = TypeVar("B")
DeviceParts = dict[str, dict[str, Tensor]]
"""level -> part -> (n, *part.shape) on the device."""


class BatchDecoder:
    """Makes batches of maps out of the stored parts of a store's images, on a device.

    On a CPU a thread uses its last buffers again: decoding always makes new maps. On CUDA they are
    pinned, and torch takes them back when their asynchronous copies are done.
    """

    def __init__(self, store: FeatureStore, *, levels: Sequence[str], device: torch.device) -> None:
        self._store = store
        self._levels = levels
        self._device = device
        self._of_thread = threading.local()
        self._memory = MapMemory()

    def make_buffers(self, bucket: SizeHW, count: int) -> EncodedFeatures:
        """Room for `count` images in this process; this thread's until it asks again."""
        if self._device.type == "cuda":
            buffers = self._store.make_buffers(bucket, count, self._levels)
            arrays = map_parts(buffers.arrays, _pin)
            return EncodedFeatures(bucket=bucket, count=count, arrays=arrays)
        last: EncodedFeatures | None = getattr(self._of_thread, "last", None)
        if last is None or (last.bucket, last.count) != (bucket, count):
            last = self._of_thread.last = self._store.make_buffers(bucket, count, self._levels)
        return last

    def decode(self, encoded: EncodedFeatures) -> Features:
        """New maps (n, C, h, w) float32 on the device, channels last."""
        is_pinned = self._device.type == "cuda"
        parts = map_parts(
            encoded.arrays,
            lambda array: torch.from_numpy(array).to(self._device, non_blocking=is_pinned),
        )
        return self.decode_parts(encoded.bucket, parts)

    def decode_parts(self, bucket: SizeHW, parts: DeviceParts) -> Features:
        """`decode` of what lies on the device.

        On a CPU image by image: what lies between the codes and the result stays in the cache.
        """
        spec_shapes = self._store.spec.map_shapes(bucket)
        shapes = {level: spec_shapes[level] for level in parts}
        decode = self._store.codec.decode
        if self._device.type != "cpu":
            return {
                level: decode(of_level, level=level, shape=shapes[level]).contiguous(
                    memory_format=torch.channels_last
                )
                for level, of_level in parts.items()
            }
        count = len(next(iter(next(iter(parts.values())).values())))
        features = self._memory.take(count, shapes)
        for n in range(count):
            for level, of_level in parts.items():
                of_image = {name: part[n : n + 1] for name, part in of_level.items()}
                out = features[level][n : n + 1]
                decode(of_image, level=level, shape=shapes[level], out=out)
        return features


def map_parts(
    parts: Mapping[str, Mapping[str, A]], make: Callable[[A], B]
) -> dict[str, dict[str, B]]:
    """`make` of every part of every level."""
    return {
        level: {name: make(part) for name, part in of_level.items()}
        for level, of_level in parts.items()
    }


def _pin(array: np.ndarray) -> np.ndarray:
    """Pinned memory of its shape and order."""
    pinned: np.ndarray = torch.empty_like(torch.from_numpy(array), pin_memory=True).numpy()
    return pinned


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

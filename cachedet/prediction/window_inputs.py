"""Inputs of an image's windows, made a batch ahead of the network: never all of them at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from cachedet.data.backbone_input import Pixels
from cachedet.data.geometry import Geometry
from cachedet.device import single_core_threads, usable_cores

_MOST_THREADS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """One of many windows of an image, of which no input is made yet."""

    pixels: Pixels  # of the whole image, or one reduced
    geometry: Geometry
    image: int  # its place in the batch of images


def window_batches(
    windows: Sequence[Window], make: Callable[[Pixels, Geometry], Tensor], *, size: int
) -> Generator[tuple[Sequence[Window], Tensor], None, None]:
    """Windows of one padded size and their inputs (N, ...), of any of the images; N up to `size`.

    While the caller looks at one batch, threads make the next.
    """
    by_bucket: dict[object, list[Window]] = {}
    for window in windows:
        by_bucket.setdefault(window.geometry.padded_hw, []).append(window)
    batches = [
        of_bucket[first : first + size]
        for of_bucket in by_bucket.values()
        for first in range(0, len(of_bucket), size)
    ]
    pool = single_core_threads(min(_MOST_THREADS, usable_cores() or 1), "window")
    try:
        ahead: deque[tuple[list[Window], list[Future[Tensor]]]] = deque()
        for batch in batches:
            made = [pool.submit(make, window.pixels, window.geometry) for window in batch]
            ahead.append((batch, made))
            if len(ahead) > 1:
                yield _stacked(*ahead.popleft())
        while ahead:
            yield _stacked(*ahead.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _stacked(batch: list[Window], made: list[Future[Tensor]]) -> tuple[Sequence[Window], Tensor]:
    return batch, torch.stack([input_.result() for input_ in made])

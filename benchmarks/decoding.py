"""Pictures of training steps decoded ahead: what live training needs to be as fast as it can be."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from cachedet.device import usable_cores
from cachedet.extraction.inputs import InputLoader

_MOST_THREADS = 16
_STEPS_AHEAD = 4  # on CUDA; on a CPU one: there decoding takes cores from the step

Picture = tuple[int, str]  # row, view


def decoded_ahead(
    inputs: InputLoader, steps: Sequence[Sequence[Picture]], device: torch.device
) -> Iterator[Tensor]:
    """(n, 3, H, W) on the device for each step.

    On a CPU one thread decodes one step ahead. On CUDA all cores do, several steps ahead, and
    another thread puts batches together in pinned memory: the step waits for nothing of it.
    """
    is_cuda = device.type == "cuda"
    threads = min(_MOST_THREADS, usable_cores() or 1) if is_cuda else 1
    waiting: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(threads) as decoders, ThreadPoolExecutor(1) as collector:

        def collect(jobs: Sequence[Future[Tensor]]) -> Tensor:
            pixels = torch.stack([job.result() for job in jobs])
            return pixels.pin_memory() if is_cuda else pixels

        for pictures in steps:
            jobs = [decoders.submit(inputs.load, row, view) for row, view in pictures]
            waiting.append(collector.submit(collect, jobs))
            if len(waiting) > (_STEPS_AHEAD if is_cuda else 1):
                yield waiting.popleft().result().to(device, non_blocking=True)
        while waiting:
            yield waiting.popleft().result().to(device, non_blocking=True)

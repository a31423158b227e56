"""Images that are read ahead: in order, in bounded memory, with nothing left behind."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from cachedet.data.geometry import Geometry
from cachedet.errors import BadImageError
from cachedet.prediction.image_detector import PreparedImage
from cachedet.prediction.read_ahead import HeldMemory, ImageJob, read_batches


def prepared(index: int, side: int = 8, nbytes: int = 0) -> PreparedImage:
    size = (side, side)
    geometry = Geometry(
        image_hw=size, scaled_hw=size, offset_yx=(0, 0), valid_hw=size, padded_hw=size, flip=False
    )
    return PreparedImage(
        image_id=index,
        image_hw=size,
        geometries=(geometry,),
        inputs=(torch.zeros(0),),
        pixels=np.zeros(nbytes, dtype=np.uint8) if nbytes else None,
    )


def batches_of(jobs: list[ImageJob[None]], **settings: Any) -> tuple[list[list[int]], list[int]]:
    bad: list[int] = []
    memory = settings.setdefault("memory", HeldMemory())
    found = []
    for batch in read_batches(jobs, on_bad=lambda job, _: bad.append(job.index), **settings):
        found.append([job.index for job, _ in batch])
        for _, image in batch:
            memory.release(image)
    return found, bad


def test_batches_are_of_one_bucket_and_depend_on_the_order_alone() -> None:
    sides = [8, 16, 8, 16, 8, 24, 16, 8]

    def read(index: int) -> PreparedImage:
        if index == 2:
            raise BadImageError("none")
        return prepared(index, sides[index])

    jobs = [ImageJob(index=n, item=None, read=lambda n=n: read(n)) for n in range(8)]  # type: ignore[misc]
    for workers in (1, 3):
        found, bad = batches_of(jobs, workers=workers, batch_size=2)
        assert found == [[1, 3], [0, 4], [5], [6], [7]]
        assert bad == [2]


def test_an_image_waits_for_few_others() -> None:
    jobs = [ImageJob(index=n, item=None, read=lambda n=n: prepared(n, 8 + n)) for n in range(9)]  # type: ignore[misc]
    found, _ = batches_of(jobs, workers=1, batch_size=2)
    assert found == [[n] for n in range(9)]
    begun: list[int] = []

    def read(index: int) -> PreparedImage:
        begun.append(index)
        return prepared(index, 8 + index)

    jobs = [ImageJob(index=n, item=None, read=lambda n=n: read(n)) for n in range(99)]  # type: ignore[misc]
    before = threading.active_count()  # other tests leave some
    batches = read_batches(
        jobs, workers=2, batch_size=2, memory=HeldMemory(), on_bad=lambda *_: None
    )
    next(batches)
    assert len(begun) <= 8 + 2 + 2 * 2 + 1
    batches.close()
    assert threading.active_count() <= before


@pytest.mark.parametrize("workers", [1, 4])
def test_memory_is_bounded_and_nobody_waits_for_ever(workers: int) -> None:
    """Batches of 8 that never fill within the budget of two images."""
    held = most = 0
    lock = threading.Lock()

    def read(index: int) -> PreparedImage:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return prepared(index, nbytes=1000)

    jobs = [ImageJob(index=n, item=None, read=lambda n=n: read(n)) for n in range(40)]  # type: ignore[misc]
    memory = HeldMemory(2000)
    seen = []
    for batch in read_batches(
        jobs, workers=workers, batch_size=3, memory=memory, on_bad=lambda *_: None
    ):
        for job, image in batch:
            seen.append(job.index)
            with lock:
                held -= 1
            memory.release(image)
    assert seen == list(range(40))
    assert most <= 2 + workers + 3


def test_who_stops_leaves_no_thread_behind() -> None:
    """Also where threads wait for room that nobody will give."""
    jobs = [
        ImageJob(index=n, item=None, read=lambda n=n: prepared(n, nbytes=99)) for n in range(40)
    ]  # type: ignore[misc]
    batches = read_batches(
        jobs, workers=3, batch_size=1, memory=HeldMemory(1), on_bad=lambda *_: None
    )
    next(batches)
    batches.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("decode")]

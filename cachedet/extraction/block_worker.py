"""A process that writes the blocks it is told, for engines that start processes elsewhere.

An engine makes a `BlockWorker` in each, gives them names of blocks, and the driver a `tally` of
what they tell. No features go that way.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cachedet.errors import CachedetError
from cachedet.extraction.block_job import Job, Written
from cachedet.extraction.inputs import InputLoader
from cachedet.extraction.pipeline import Work
from cachedet.progress import StageProgress, count_of
from cachedet.store.format.commits import CommitRecord
from cachedet.store.format.layout import Block
from cachedet.store.writer import StoreWriter


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """All that comes back of a block: its features lie in the store."""

    block: str
    nbytes: int  # of its shards; 0 where another process wrote them
    seconds: float  # since the worker's receipt before
    checksum: str  # of the commit record; empty where another process wrote it


Told = Receipt | Mapping[str, Work]
"""A block, or what each stage took for some of them."""


class BlockWorker:
    """Opens backbone, images and store once, with its first blocks."""

    def __init__(self) -> None:
        self._opened: tuple[Job, StoreWriter, InputLoader] | None = None

    def write(self, fetch: Callable[[], Job], names: Sequence[str]) -> Iterator[Told]:
        """A receipt for each block as soon as it lies in the store; in the end what it took.

        Raises what opening, decoding, encoding or writing raised, with the name of the machine.
        """
        if not names:  # somebody asks whether this process lives
            return
        try:
            self._opened = self._opened or _open(fetch())
            yield from _write(names, *self._opened)
        except CachedetError as error:
            where = f"on the machine {socket.gethostname()}, which needs images and store under"
            error.args = (f"{error} ({where} the names that they have here)",)
            raise


def _open(job: Job) -> tuple[Job, StoreWriter, InputLoader]:
    with contextlib.suppress(OSError):
        os.chdir(job.folder)  # relative names are of there
    return job, job.open_store(), job.make_inputs()


def _write(
    names: Sequence[str], job: Job, writer: StoreWriter, loader: InputLoader
) -> Iterator[Told]:
    told: queue.SimpleQueue[Receipt | None] = queue.SimpleQueue()
    blocks = {block.name: block for block in writer.blocks}
    since = time.perf_counter()

    def on_block(block: Block, record: CommitRecord | None) -> None:
        nonlocal since
        before, since = since, time.perf_counter()
        told.put(
            Receipt(
                block=block.name,
                nbytes=0 if record is None else record.nbytes,
                seconds=since - before,
                checksum="" if record is None else record.checksum,
            )
        )

    def left() -> Iterator[Block]:
        for name in names:
            if writer.is_committed(blocks[name]):
                on_block(blocks[name], None)
            else:
                yield blocks[name]

    pipeline = job.make_pipeline(writer, loader, on_block)
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(pipeline.run, left())
        done.add_done_callback(lambda _: told.put(None))
        while (receipt := told.get()) is not None:
            yield receipt
        done.result()
    yield pipeline.clock.stages


def tally(told: Iterable[Told], images: Mapping[str, int], *, workers: Sized) -> Written:
    """What came of blocks with so many `images`, by name, with one progress line over all."""
    written, others = Written(), sum(images.values())
    with StageProgress("extract", total=others, unit="images") as progress:
        progress.note("workers start")
        for one in told:
            if not isinstance(one, Receipt):
                written.clock.add(one, processes=len(workers))
                continue
            note = count_of(len(workers), "worker")
            if not one.checksum:
                progress.note(note)
                continue
            count = images[one.block]
            written.blocks += 1
            written.nbytes += one.nbytes
            others -= count
            detail = written.clock.describe()
            progress.advance(count, nbytes=one.nbytes, note=note, detail=detail)
        if others:
            progress.settle(f"{count_of(others, 'more image')} without a receipt")
    return written

"""Decoding, backbone, encoding and writing at the same time, in bounded memory.

Each stage has its own threads; the backbone runs in the calling one, which on CUDA goes on to the
next batch before the device is done with this one. At most two blocks of encoded images exist at
once (one more than are written at once), of features one batch more than threads encode, and the
inputs of the block decoded ahead.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cachedet.backbone.compiled import CompiledBackbone
from cachedet.backbone.frozen import FrozenBackbone
from cachedet.device import single_core_threads, usable_cores
from cachedet.extraction.device_work import Stretch, Uploads, take_own_stream
from cachedet.extraction.inputs import InputLoader
from cachedet.store.format.commits import CommitRecord
from cachedet.store.format.layout import Block
from cachedet.store.writer import PackedImages, StoreWriter
from cachedet.structures import Features


@dataclass(kw_only=True)
class Work:
    """What one stage has done so far."""

    workers: int
    seconds: float = 0.0  # busy, summed over its workers
    images: int = 0
    nbytes: int = 0

    @property
    def images_per_second(self) -> float:
        """The rate of all its workers together, if nothing else held them up."""
        return self.images * self.workers / self.seconds if self.seconds > 0 else 0.0

    @property
    def bytes_per_second(self) -> float:
        return self.nbytes * self.workers / self.seconds if self.seconds > 0 else 0.0


class StageClock:
    """Adds up the busy time of every stage, from any thread, in the order images pass them."""

    def __init__(self, workers: dict[str, int]) -> None:
        self.stages = {name: Work(workers=count) for name, count in workers.items()}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def busy(self, stage: str, images: int) -> Iterator[Work]:
        """Time the body; it adds the bytes it moved to `nbytes` of the value it gets."""
        work = Work(workers=1)
        started = time.perf_counter()
        yield work
        seconds = time.perf_counter() - started
        self.count(stage, images, nbytes=work.nbytes, seconds=seconds)

    def count(self, stage: str, images: int, *, nbytes: int, seconds: float) -> None:
        """What a worker of the stage has done."""
        with self._lock:
            total = self.stages[stage]
            total.seconds += seconds
            total.images += images
            total.nbytes += nbytes

    def add(self, stages: Mapping[str, Work], *, processes: int) -> None:
        """What one of `processes` alike has done."""
        for name, work in stages.items():
            total = self.stages.setdefault(name, Work(workers=0))
            total.workers = work.workers * processes
            total.seconds += work.seconds
            total.images += work.images
            total.nbytes += work.nbytes

    @property
    def slowest(self) -> str | None:
        """The stage with the lowest rate; None before all have done something."""
        rates = {name: work.images_per_second for name, work in self.stages.items()}
        return min(rates, key=rates.__getitem__) if rates and all(rates.values()) else None

    def describe(self) -> str:
        """``decode 210/s 55 MB/s, ...; slowest: backbone``"""
        parts = [
            f"{name} {work.images_per_second:.0f}/s {work.bytes_per_second / 1e6:.0f} MB/s"
            for name, work in self.stages.items()
            if work.images
        ]
        named = f"; slowest: {self.slowest}" if self.slowest else ""
        return ", ".join(parts) + named


_MOST_ENCODERS = 4
_CORES_OF_AN_ENCODER = 4  # the others decode


@dataclass(frozen=True, eq=False)
class _Inputs:
    """A batch of backbone inputs that is being filled."""

    images: Tensor  # (n, 3, H, W)
    filled: list[Future[None]]  # by image

    def wait(self) -> Tensor:
        """The whole batch. Raises what decoding raised."""
        for future in self.filled:
            future.result()
        return self.images


class ExtractionPipeline:
    """Writes the features of blocks into a store."""

    def __init__(
        self,
        *,
        loader: InputLoader,
        backbone: FrozenBackbone | CompiledBackbone,
        writer: StoreWriter,
        batch_size: int,  # images per forward; a block is cut into batches from its start (law L5)
        workers: int,  # threads that decode
        on_block: Callable[[Block, CommitRecord | None], None],  # after each; None: another's
        committers: int = 1,  # blocks that are written at once
        encoders: int | None = None,  # threads that encode; None: as suits the backbone's device
    ) -> None:
        self._loader = loader
        self._backbone = backbone
        self._device = next(backbone.parameters()).device
        self._uploads = Uploads(self._device)
        self._writer = writer
        self._batch_size = batch_size
        self._workers = workers
        self._encoders = encoders or _encoding_threads(self._device)
        self._on_block = on_block
        self._told = threading.Lock()
        self._committers = committers
        self._blocks = threading.Semaphore(committers + 1)  # one is being filled
        self._batches = threading.Semaphore(self._encoders + 1)  # one leaves the backbone
        self.clock = StageClock(
            {"decode": workers, "backbone": 1, "encode": self._encoders, "write": committers}
        )

    def run(self, blocks: Iterable[Block | None]) -> None:
        """Write every block; None says that the next one may be long in coming.

        Raises what decoding, encoding or writing raised first.
        """
        commits: deque[Future[None]] = deque()
        own_stream = partial(take_own_stream, self._device)
        with (
            single_core_threads(self._workers, "decode") as decoders,
            single_core_threads(self._encoders, "encode", begin=own_stream) as encoder,
            single_core_threads(self._committers, "write") as committer,
        ):
            for block, batches in self._decoded_ahead(blocks, decoders):
                self._blocks.acquire()
                while commits and commits[0].done():
                    commits.popleft().result()
                packed = self._run_backbone(block, batches, encoder)
                commits.append(committer.submit(self._commit, block, packed))
            for commit in commits:
                commit.result()

    def _decoded_ahead(
        self, blocks: Iterable[Block | None], decoders: ThreadPoolExecutor
    ) -> Iterator[tuple[Block, deque[_Inputs]]]:
        """The inputs of each block; the next block is decoded while one is used."""
        waiting: deque[tuple[Block, deque[_Inputs]]] = deque()
        for block in blocks:
            if block is None:
                yield from waiting
                waiting.clear()
                continue
            starts = range(0, len(block.rows), self._batch_size)
            batches = deque(self._decode(block, start, decoders) for start in starts)
            waiting.append((block, batches))
            if len(waiting) > 1:
                yield waiting.popleft()
        yield from waiting

    def _decode(self, block: Block, start: int, decoders: ThreadPoolExecutor) -> _Inputs:
        """Begin to fill a batch, in memory from which a CUDA device copies by itself."""
        rows = block.rows[start : start + self._batch_size]
        self._loader.expect(row for row in rows if row not in self._writer.gone)
        is_cuda = self._device.type == "cuda"
        images = torch.empty((len(rows), 3, *block.bucket), pin_memory=is_cuda)
        filled = [
            decoders.submit(self._load, row, block.view, image)
            for row, image in zip(rows, images, strict=True)
        ]
        return _Inputs(images, filled)

    def _load(self, row: int, view: str, out: Tensor) -> None:
        if row in self._writer.gone:  # nobody has its file; the features are never read
            out.zero_()
            return
        with self.clock.busy("decode", 1) as work:
            out.copy_(self._loader.load(row, view))
            work.nbytes = out.nbytes

    def _run_backbone(
        self, block: Block, batches: deque[_Inputs], encoder: ThreadPoolExecutor
    ) -> list[Future[PackedImages]]:
        packed = []
        for start in range(0, len(block.rows), self._batch_size):
            images = batches.popleft().wait()
            self._batches.acquire()
            there = self._uploads.send(images)
            with Stretch(self._device) as computing:
                features = self._backbone(there)
            packed.append(encoder.submit(self._encode, block, features, start, computing))
        return packed

    def _encode(
        self, block: Block, features: Features, start: int, computing: Stretch
    ) -> PackedImages:
        images, nbytes = len(next(iter(features.values()))), _nbytes(features)
        try:
            self.clock.count("backbone", images, nbytes=nbytes, seconds=computing.wait())
            with self.clock.busy("encode", images) as work:
                packed = self._writer.encode(block, features, start=start)
                work.nbytes = packed.nbytes
        finally:
            self._batches.release()
        return packed

    def _commit(self, block: Block, packed: Sequence[Future[PackedImages]]) -> None:
        try:
            images = [future.result() for future in packed]
            with self.clock.busy("write", len(block.rows)) as work:
                record = self._writer.commit(block, images)
                work.nbytes = sum(packed_images.nbytes for packed_images in images)
            with self._told:
                self._on_block(block, record)
        finally:
            self._blocks.release()


def _nbytes(features: Features) -> int:
    return sum(maps.nbytes for maps in features.values())


def _encoding_threads(device: torch.device) -> int:
    """One where the backbone computes on the same cores."""
    if device.type == "cpu":
        return 1
    return max(1, min(_MOST_ENCODERS, (usable_cores() or 1) // _CORES_OF_AN_ENCODER))

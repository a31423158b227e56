"""Decoding, backbone, encoding and writing at the same time, in bounded memory.

Each stage has its own threads; the backbone runs in the calling one. At most two blocks of encoded
pictures and two batches of features exist at once, beside the inputs of the block decoded ahead.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.extraction.inputs import InputLoader
from cachedet.extraction.stages import StageClock
from cachedet.store.blocks import Block
from cachedet.store.writer import PackedPictures, StoreWriter
from cachedet.structures import Features

_BLOCKS = 2  # being filled, and being written
_BATCHES = 2  # of features: leaving the backbone, and being encoded


class ExtractionPipeline:
    """Writes the features of blocks into a store.

    Args:
        loader: of the pictures.
        backbone: whose features are wanted.
        writer: of the store.
        batch_size: pictures per forward; a block is cut into batches from its start (law L5).
        workers: threads that decode.
        on_block: called after each block with it and whether this process committed it.
    """

    def __init__(
        self,
        *,
        loader: InputLoader,
        backbone: FrozenBackbone,
        writer: StoreWriter,
        batch_size: int,
        workers: int,
        on_block: Callable[[Block, bool], None],
    ) -> None:
        self.clock = StageClock({"decode": workers, "backbone": 1, "encode": 1, "write": 1})
        self._loader = loader
        self._backbone = backbone
        self._device = next(backbone.parameters()).device
        self._writer = writer
        self._batch_size = batch_size
        self._workers = workers
        self._on_block = on_block
        self._blocks = threading.Semaphore(_BLOCKS)
        self._batches = threading.Semaphore(_BATCHES)

    def run(self, blocks: Iterable[Block | None]) -> None:
        """Write every block; None says that the next one may be long in coming.

        Raises what decoding, encoding or writing raised first.
        """
        commits: deque[Future[None]] = deque()
        with (
            ThreadPoolExecutor(self._workers, "decode") as decoders,
            ThreadPoolExecutor(1, "encode") as encoder,
            ThreadPoolExecutor(1, "write") as committer,
        ):
            for block, images in self._decoded_ahead(blocks, decoders):
                self._blocks.acquire()
                while commits and commits[0].done():
                    commits.popleft().result()
                packed = self._run_backbone(block, images, encoder)
                commits.append(committer.submit(self._commit, block, packed))
            for commit in commits:
                commit.result()

    def _decoded_ahead(
        self, blocks: Iterable[Block | None], decoders: ThreadPoolExecutor
    ) -> Iterator[tuple[Block, list[Future[Tensor]]]]:
        """The inputs of each block; the next block is decoded while one is used."""
        waiting: deque[tuple[Block, list[Future[Tensor]]]] = deque()
        for block in blocks:
            if block is None:
                yield from waiting
                waiting.clear()
                continue
            inputs = [decoders.submit(self._load, row, block.view) for row in block.rows]
            waiting.append((block, inputs))
            if len(waiting) > 1:
                yield waiting.popleft()
        yield from waiting

    def _run_backbone(
        self, block: Block, images: Sequence[Future[Tensor]], encoder: ThreadPoolExecutor
    ) -> list[Future[PackedPictures]]:
        packed = []
        for start in range(0, len(images), self._batch_size):
            inputs = [image.result() for image in images[start : start + self._batch_size]]
            self._batches.acquire()
            with self.clock.busy("backbone", len(inputs)) as work:
                features = self._backbone(torch.stack(inputs).to(self._device))
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)
                work.nbytes = sum(maps.nbytes for maps in features.values())
            packed.append(encoder.submit(self._encode, block, features, start))
        return packed

    def _load(self, row: int, view: str) -> Tensor:
        with self.clock.busy("decode", 1) as work:
            image = self._loader.load(row, view)
            work.nbytes = image.nbytes
        return image

    def _encode(self, block: Block, features: Features, start: int) -> PackedPictures:
        try:
            with self.clock.busy("encode", len(next(iter(features.values())))) as work:
                packed = self._writer.encode(block, features, start=start)
                work.nbytes = packed.nbytes
        finally:
            self._batches.release()
        return packed

    def _commit(self, block: Block, packed: Sequence[Future[PackedPictures]]) -> None:
        try:
            pictures = [future.result() for future in packed]
            with self.clock.busy("write", len(block.rows)) as work:
                is_ours = self._writer.commit(block, pictures)
                work.nbytes = sum(some.nbytes for some in pictures)
            self._on_block(block, is_ours)
        finally:
            self._blocks.release()

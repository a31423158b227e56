"""What an extraction has to do, wherever its blocks are computed, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from cachedet.backbone.compiled import CompiledBackbone
from cachedet.backbone.frozen import FrozenBackbone
from cachedet.device import choose_device
from cachedet.errors import StoreError
from cachedet.extraction.inputs import InputLoader
from cachedet.extraction.pipeline import ExtractionPipeline, StageClock
from cachedet.store.files.depot import Depot, Place, open_depot
from cachedet.store.format.commits import CommitRecord
from cachedet.store.format.layout import Block
from cachedet.store.format.plan import StorePlan
from cachedet.store.writer import StoreWriter

UPLOADS = 4  # blocks on their way to an object storage at once
_WRITES = 3  # to a disk, where a GPU makes more than one writer can take


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """All that a process needs for writing blocks of a store that exists; it can be sent."""

    store: Place
    backbone: FrozenBackbone
    make_inputs: Callable[[], InputLoader]
    device: str
    batch_size: int
    workers: int  # threads that decode
    compile: bool = False  # the backbone
    fingerprint: str  # of the store's first blocks, which says what is in it
    folder: Path = field(default_factory=Path.cwd)  # that relative names start from

    def to_send(self, *, cores: float) -> Job:
        """As a process that has so many cores gets it."""
        return replace(self, backbone=self.backbone.cpu(), workers=max(1, int(cores)))

    def open_store(self) -> StoreWriter:
        """In another process than the one that made it. Raises StoreError."""
        depot = open_depot(self.store)
        writer = StoreWriter(depot, StorePlan.load(depot.source))
        if writer.manifest.block_fingerprint(0) != self.fingerprint:
            raise StoreError(f"{depot} is another store than the one that was opened")
        return writer

    def make_pipeline(
        self,
        writer: StoreWriter,
        loader: InputLoader,
        on_block: Callable[[Block, CommitRecord | None], None],
    ) -> ExtractionPipeline:
        """Of this process. Raises ConfigError where it lacks the device."""
        return ExtractionPipeline(
            loader=loader,
            backbone=self._on_device,
            writer=writer,
            batch_size=self.batch_size,
            workers=self.workers,
            on_block=on_block,
            committers=committers_to(writer.depot, next(self._on_device.parameters()).device),
        )

    @cached_property
    def _on_device(self) -> FrozenBackbone | CompiledBackbone:
        """Compiled once for all pipelines of this process."""
        backbone = self.backbone.to(choose_device(self.device))
        if not self.compile:
            return backbone
        return CompiledBackbone(backbone, batch_size=self.batch_size)


def committers_to(depot: Depot, device: torch.device) -> int:
    """How many blocks are written at once: waiting for a disk or a server costs no core."""
    if depot.folder is None:
        return UPLOADS
    return 1 if device.type == "cpu" else _WRITES


@dataclass(kw_only=True)
class Written:
    """What was written by one call, all its processes together."""

    blocks: int = 0
    nbytes: int = 0
    clock: StageClock = field(default_factory=lambda: StageClock({}))


Write = Callable[[Job, StoreWriter, InputLoader, Sequence[Block]], Written]
"""Writes the blocks that a store lacks, with a loader for those of this process."""

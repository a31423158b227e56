"""What machines and an object storage that are not here will take, from what was measured here."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from cachedet.errors import InputError
from cachedet.estimation.cluster import PAUSE, ClusterJob, StorageRates, Traffic, simulate
from cachedet.estimation.forecast import compute_extraction, epoch_nbytes
from cachedet.estimation.measured import Measured
from cachedet.estimation.what_if import WhatIf
from cachedet.store.files.source import file_limit

_MOST_BLOCKS = 2_000_000  # half a minute
_READ_AT_ONCE = 16  # requests of a training
_MOST_INDICES = 65_536  # of shards that a training keeps


@dataclass(frozen=True, kw_only=True)
class StoreShape:
    """A store in objects."""

    blocks: int
    shards: int  # of a block
    read_shards: int  # of a block: those of the levels that are trained on
    block_images: float  # images of a block, on average


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """The first epoch of a training that reads the bucket, with nothing kept here before."""

    seconds: float
    bottleneck: str  # computing, bandwidth or requests
    gets: int
    heads: int
    lists: int  # pages of records
    nbytes: float


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """Extraction into a bucket, and an epoch from there. Opening the store is not counted."""

    workers: int
    blocks: int
    objects: int
    nbytes: float  # stored
    seconds: float  # of extraction, until the last machine has ended
    parts: dict[str, float]  # seconds that each would take alone
    twice: int  # blocks that were computed once more
    traffic: Traffic  # of extraction
    epoch: EpochPlan | None  # None where training could not be tried

    @property
    def bottleneck(self) -> str:
        return max(self.parts, key=self.parts.__getitem__)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "bottleneck": self.bottleneck}


def plan_cluster(measured: Measured, change: WhatIf, shape: StoreShape) -> ClusterPlan:
    """What `workers` machines like this one take; `measured` is what the what-if made of it.

    Raises InputError where that is more than can be simulated.
    """
    workers, nbytes = change.workers or 1, measured.stored.nbytes
    if shape.blocks > _MOST_BLOCKS:
        raise InputError(
            f"--what-if storage={change.storage}: {shape.blocks:,} blocks are more than the "
            f"{_MOST_BLOCKS:,} that are simulated; give fewer images, or a larger --block-size"
        )
    fit_seconds, extract = compute_extraction(measured, measured.stored_to)
    computing = extract.scaled({"write": 0.0}).seconds  # a disk here holds nobody up there
    storage = StorageRates(
        bandwidth=change.bandwidth or 0.0,
        latency=change.latency or 0.0,
        failing=change.failing or 0.0,
    )
    job = ClusterJob(
        blocks=shape.blocks,
        block_seconds=computing / shape.blocks,
        block_nbytes=nbytes / shape.blocks,
        shards=shape.shards,
        start_seconds=measured.scan.seconds + fit_seconds + measured.start,
        block_files=shape.block_images if change.image_file else 0.0,
        files=measured.images if change.image_file else 0,
        file_nbytes=change.image_file or 0.0,
    )
    run = simulate(job, storage, workers=workers)
    traffic = run.traffic
    return ClusterPlan(
        workers=workers,
        blocks=shape.blocks,
        objects=shape.blocks * (shape.shards + 1),
        nbytes=nbytes,
        seconds=run.seconds,
        parts={
            "looking at all images": job.start_seconds,
            "computing": computing / workers,
            "bandwidth": (traffic.sent + traffic.received) / storage.bandwidth,
            "requests for records": shape.blocks * storage.latency,
        },
        twice=run.twice,
        traffic=traffic,
        epoch=_plan_epoch(measured, storage, shape),
    )


def _plan_epoch(measured: Measured, storage: StorageRates, shape: StoreShape) -> EpochPlan | None:
    phase = measured.trainings[measured.mode].phase
    if phase is None:
        return None
    gets, heads = epoch_requests(measured.showings, shape)
    tries, nbytes = 1 / (1 - storage.failing), epoch_nbytes(measured)
    gets, heads = round(gets * tries), round(heads * tries)
    waiting = (gets + heads) * (storage.latency + storage.failing * PAUSE) / _READ_AT_ONCE
    parts = {
        "computing": phase.seconds,
        "bandwidth": nbytes / storage.bandwidth,
        "requests": waiting,
    }
    bottleneck = max(parts, key=parts.__getitem__)
    return EpochPlan(
        seconds=parts[bottleneck],
        bottleneck=bottleneck,
        gets=gets,
        heads=heads,
        lists=math.ceil(shape.blocks / 1000),
        nbytes=nbytes,
    )


def epoch_requests(showings: int, shape: StoreShape) -> tuple[int, int]:
    """GET and HEAD: each record once, of a shard its length and index, of an image each array.

    Lengths are asked for again where more shards than may be open are read in turn, and indices
    where they are more than a training keeps.
    """
    shards, chunks = shape.blocks * shape.read_shards, showings * shape.read_shards
    opened = min(shards, chunks)
    again = chunks - opened
    heads = opened + again * (1 - min(1.0, file_limit() / shards))
    indices = opened + again * (1 - min(1.0, _MOST_INDICES / shards))
    return round(shape.blocks + chunks + indices), round(heads)

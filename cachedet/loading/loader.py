"""Batches of cached features, read ahead of the training step.

Their order is a pure function of (seed, epoch) and the same for any number of processes (law L6);
see sampling.py. Where features wait before their batch is due: see residency.py.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cachedet.augmentation.draws import RandomDraws
from cachedet.augmentation.steps import Augment, make_augment
from cachedet.config.run import TrainConfig, WantedResidency
from cachedet.detector.build import choose_read_levels
from cachedet.device import choose_device, single_core_threads, usable_cores
from cachedet.errors import ConfigError
from cachedet.loading.memory import free_memory, free_ram
from cachedet.loading.residency import (
    FeatureSource,
    Need,
    StreamedFeatures,
    choose_residency,
    make_source,
    with_disk_cache,
)
from cachedet.loading.sampling import (
    PlannedBatch,
    Sampler,
    describe_empty_classes,
    indices_of_rank,
    make_sampler,
    plan_epoch,
    planned_batches,
    resolve_views,
)
from cachedet.loading.targets import targets_of
from cachedet.store.format.fetching import Fetched
from cachedet.store.reader import FeatureStore, Key
from cachedet.structures import Batch, Features, SizeHW


@dataclass(frozen=True, kw_only=True, eq=False)
class PrefetchedBatch:
    """A batch whose tensors may still be in the making on the device."""

    batch: Batch
    event: torch.cuda.Event | None = None  # happens when they are made


class PrefetchStream:
    """One side stream on CUDA; on any other device nothing."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def make(self, make: Callable[[], Batch]) -> PrefetchedBatch:
        """Call `make` with the side stream as the current one of this thread."""
        if self._stream is None:
            return PrefetchedBatch(batch=make())
        with torch.cuda.stream(self._stream):
            batch = make()
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        return PrefetchedBatch(batch=batch, event=event)

    def take(self, prefetched: PrefetchedBatch) -> Batch:
        """The batch, for the current stream of this thread."""
        if prefetched.event is not None and self._stream is not None:
            current = torch.cuda.current_stream(self._stream.device)
            current.wait_event(prefetched.event)
            tensors = list(prefetched.batch.features.values())
            for targets in prefetched.batch.targets:
                tensors += (targets.boxes, targets.labels, targets.crowd)
            for tensor in tensors:
                tensor.record_stream(current)  # else its memory could be used again too early
        return prefetched.batch


_log = logging.getLogger("cachedet.loading")
_LOWER_PRIORITY = 10  # on a machine full of other work it still gets a tenth of a core
_AHEAD_NBYTES = 256 << 20  # of decoded features that wait for the step; at least two batches
_MOST_AHEAD = 16  # batches
_MOST_THREADS = 4
_FETCHED_AHEAD = (
    8  # batches of a server that are on their way at once, beside those that are decoded
)
_CORES_OF_A_THREAD = 4  # torch computes a step on all cores: fewer leave nothing for a second one


class BatchLoader(Protocol):
    """What a training loop takes its batches from."""

    def plan(self, epoch: int) -> list[NDArray[np.int64]]:
        """The global batches of `epoch` as (view index, row) pairs."""

    def epoch(
        self, epoch: int, *, skip: int = 0, until: int | None = None
    ) -> Generator[Batch, None, None]:
        """Each batch of `epoch` from number `skip` on, then those of the epochs before `until`."""

    def read_ahead(self, planned: Iterable[PlannedBatch]) -> Generator[Batch, None, None]:
        """Each batch in turn; closing ends the reading."""


class FeatureLoader:
    """Reads batches ahead of the training step, in background threads.

    What is stored travels to `device` and is decoded and augmented there, beside the step before.
    Each rank reads its share of a global batch (`indices_of_rank`).
    """

    def __init__(
        self,
        store: FeatureStore,
        *,
        views: Sequence[str] | Mapping[str, float],  # names, or weights in any unit
        levels: Sequence[str],
        batch_size: int,  # most images of a global batch; larger than the data is simply the data
        seed: int,  # of the order, and of augmentation
        device: torch.device | None = None,  # where batches come to lie; None: the CPU
        sampler: Sampler | None = None,  # None: each image once an epoch
        source: FeatureSource | None = None,  # None: read from the disk
        augment: Augment | None = None,  # draws by seed, epoch, number of the batch, image index
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._device = device or torch.device("cpu")
        self._store = store
        self._views = tuple(views)
        self._probabilities = tuple(views.values()) if isinstance(views, Mapping) else None
        self._levels = tuple(levels)
        self._batch_size = batch_size
        self._seed = seed
        self._buckets, self._nbytes = _bucket_numbers(store, self._views, self._levels)
        self._sampler = sampler
        self._source = source or StreamedFeatures(store, levels=self._levels, device=self._device)
        self._augment = augment
        self._rank, self._world_size = rank, world_size

    def plan(self, epoch: int) -> list[NDArray[np.int64]]:
        """The global batches of `epoch` as (view index, row) pairs; see `plan_epoch`."""
        return plan_epoch(
            self._buckets,
            batch_size=self._batch_size,
            seed=self._seed,
            epoch=epoch,
            sampler=self._sampler,
            probabilities=self._probabilities,
        )

    @property
    def plans_alike(self) -> bool:
        """Whether each epoch has the same number of batches, whatever is drawn."""
        return self._sampler is None and bool((self._buckets == self._buckets[0]).all())

    def epoch(
        self, epoch: int, *, skip: int = 0, until: int | None = None
    ) -> Generator[Batch, None, None]:
        """This rank's share of each batch of `epoch`, from number `skip` on.

        A resumed epoch starts in its middle. With `until`, the epochs before it follow, and are
        read ahead while this one ends. Raises what `FeatureStore.read` raises, at the batch that
        cannot be read.
        """
        return self.read_ahead(planned_batches(self.plan, epoch, skip=skip, until=until))

    def read_ahead(self, planned: Iterable[PlannedBatch]) -> Generator[Batch, None, None]:
        """This rank's share of each batch; see `epoch`. Closing ends the reading."""
        stream = PrefetchStream(self._device)
        waiting: deque[tuple[int, Future[PrefetchedBatch]]] = deque()
        readers = single_core_threads(
            _reading_threads(), "feature-reader", begin=partial(give_way, self._device.type)
        )
        fetchers = ThreadPoolExecutor(_FETCHED_AHEAD, "feature-fetcher")
        try:
            for keys, epoch, number in planned:
                indices = indices_of_rank(len(keys), rank=self._rank, world_size=self._world_size)
                share = keys[indices]
                view, row = share[0]
                nbytes = len(share) * self._nbytes[int(self._buckets[view, row])]
                while _is_enough(waiting, nbytes):
                    yield stream.take(waiting.popleft()[1].result())
                draws = RandomDraws((self._seed, epoch, number), indices=indices)
                fetch = fetchers.submit(self._fetch, share) if self._store.is_remote else None
                make = partial(self._read, share, draws, fetch, others=len(keys) - len(share))
                waiting.append((nbytes, readers.submit(stream.make, make)))
            while waiting:
                yield stream.take(waiting.popleft()[1].result())
        finally:
            fetchers.shutdown(cancel_futures=True)  # first: readers wait for what it gives
            readers.shutdown(cancel_futures=True)

    def read(self, keys: NDArray[np.int64]) -> Batch:
        """(n, 2) pairs of view index and row, of one bucket, as in `plan`; not augmented."""
        return self._batch_of(keys, self._source.read(self._pairs(keys)))

    def _pairs(self, keys: NDArray[np.int64]) -> list[Key]:
        return [(int(row), self._views[int(view)]) for view, row in keys]

    def _batch_of(self, keys: NDArray[np.int64], features: Features) -> Batch:
        targets = [targets_of(self._store, row, view) for row, view in self._pairs(keys)]
        return Batch(features=features, targets=targets)

    def _fetch(self, keys: NDArray[np.int64]) -> Fetched:
        """What a server must be asked for; features that wait in memory need nothing."""
        source = self._source
        return source.fetch(self._pairs(keys)) if isinstance(source, StreamedFeatures) else {}

    def _read(
        self,
        keys: NDArray[np.int64],
        draws: RandomDraws,
        fetch: Future[Fetched] | None,
        *,
        others: int,
    ) -> Batch:
        if fetch is None or not isinstance(self._source, StreamedFeatures):
            batch = self.read(keys)
        else:
            batch = self._batch_of(keys, self._source.read(self._pairs(keys), fetch.result()))
        if self._augment is not None:
            batch = self._augment(batch, draws)
        return replace(batch.to(self._device), others=others)


def make_loader(
    store: FeatureStore,
    *,
    views: Sequence[str] | Mapping[str, float] | None = None,
    levels: Sequence[str] | None = None,
    batch_size: int = 8,
    seed: int = 0,
    device: str = "cpu",
    residency: WantedResidency = "stream",
    disk_cache: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> FeatureLoader:
    """Batches of a store, read and decoded ahead of whoever takes them; `.epoch(n)` gives them.

    Args:
        store: to read; all blocks of the views must be there.
        views: names or families, or the weight of each, of which one is drawn for each image and
            epoch. All that the store holds by default.
        levels: to read; all by default.
        batch_size: most images of a batch; images of a batch have one padded size.
        seed: of the order and of the views drawn; an epoch is the same for the same seed.
        device: where batches come to lie.
        residency: "stream" reads from the store in every epoch, "disk" keeps copies of a remote one
            on this machine, "ram" and "device" keep the encoded features, "auto" chooses by what is
            free.
        disk_cache: most bytes of these copies; by default half of what their disk has.
        rank, world_size: this process's share of each batch, of how many.

    Raises:
        ConfigError: views the store lacks, or a residency that does not fit.
        StoreError: blocks are missing, or cannot be read.

    Examples:
        >>> loader = cachedet.make_loader(cachedet.open_store("train.zarr"), views=["base"])
        >>> for batch in loader.epoch(0):
        ...     batch.features["C3"].shape, batch.targets[0].boxes
    """
    probabilities = resolve_views(views, held=store.views, where=store.location)
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    store.require_complete(tuple(probabilities))
    store = with_disk_cache(store, residency, disk_cache)
    chosen = choose_device(device)
    names = tuple(levels) if levels is not None else store.spec.names
    return FeatureLoader(
        store,
        views=probabilities,
        levels=names,
        batch_size=batch_size,
        seed=seed,
        device=chosen,
        source=_make_source(residency, store, probabilities, names, chosen, logs=rank == 0),
        rank=rank,
        world_size=world_size,
    )


def make_run_loader(
    config: TrainConfig, store: FeatureStore, *, rank: int = 0, world_size: int = 1
) -> FeatureLoader:
    """The batches that a run of this config trains on.

    Rank 0 logs where the features wait, and which classes have no box.

    Raises ConfigError: views the store lacks, a sampling that needs boxes where there are none, or
    a residency that does not fit; StoreError where residency `ram` or `device` cannot read.
    """
    device = choose_device(config.device)
    levels = choose_read_levels(config, store.manifest)
    views = resolve_views(config.views, held=store.views, where=store.location)
    sampler = make_sampler(config.sampling, store.annotations)
    source = _make_source(config.residency, store, views, levels, device, logs=rank == 0)
    empty_classes = describe_empty_classes(store.annotations)
    if empty_classes is not None and rank == 0:
        _log.info(empty_classes)
    return FeatureLoader(
        store,
        views=views,
        levels=levels,
        batch_size=config.schedule.batch_size,
        seed=config.seed,
        device=device,
        sampler=sampler,
        source=source,
        augment=make_augment(config.augment, spec=store.manifest.network),
        rank=rank,
        world_size=world_size,
    )


def _make_source(
    wanted: WantedResidency,
    store: FeatureStore,
    views: Collection[str],
    levels: Sequence[str],
    device: torch.device,
    *,
    logs: bool,
) -> FeatureSource:
    """Make the source of the features, where they fit best; with `logs` the log says why."""
    stored, unpacked = store.encoded_nbytes(views, levels)
    processes = _processes_here()
    has_own_memory = device.type == "cuda"
    need = Need(
        stored=stored,
        unpacked=unpacked,
        ram=free_ram() // processes,
        device=free_memory(device) // (1 if has_own_memory else processes),
        device_name=str(device),
        disk=store.disk_cache,
    )
    residency, reason = choose_residency(wanted, need, has_own_memory=has_own_memory)
    if logs:
        _log.info(reason)
    return make_source(
        residency,
        store,
        views=tuple(views),
        levels=levels,
        device=device,
        threads=_reading_threads(),
    )


def make_planner(config: TrainConfig, store: FeatureStore) -> FeatureLoader:
    """A loader of the same plan as `make_run_loader`'s, for those who do not read its features.

    Raises ConfigError: views the store lacks, a sampling that needs boxes where there are none.
    """
    return FeatureLoader(
        store,
        views=resolve_views(config.views, held=store.views, where=store.location),
        levels=choose_read_levels(config, store.manifest),
        batch_size=config.schedule.batch_size,
        seed=config.seed,
        sampler=make_sampler(config.sampling, store.annotations),
    )


def _is_enough(waiting: deque[tuple[int, Future[PrefetchedBatch]]], nbytes: int) -> bool:
    """Whether the step must take a batch before one of `nbytes` more is read."""
    ahead = nbytes + sum(of_batch for of_batch, _ in waiting)
    return len(waiting) >= 2 and (ahead > _AHEAD_NBYTES or len(waiting) >= _MOST_AHEAD)


def give_way(device_type: str) -> None:
    """Keep this thread, of one core, out of the way of the training step.

    Where the step runs on the same cores, each millisecond taken from one of its threads makes the
    others wait as long: a reader of lower priority runs while the step leaves a core free, or waits
    for its batch.
    """
    if device_type == "cpu" and sys.platform == "linux":  # elsewhere it is the whole process's
        lower = os.getpriority(os.PRIO_PROCESS, 0) + _LOWER_PRIORITY
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), lower)


def _reading_threads() -> int:
    """Threads of this process that read and decode: one for every four of its cores."""
    cores = (usable_cores() or os.cpu_count() or 1) // _processes_here()
    return max(1, min(_MOST_THREADS, cores // _CORES_OF_A_THREAD))


def _processes_here() -> int:
    """How many train together on this machine, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _bucket_numbers(
    store: FeatureStore, views: Sequence[str], levels: Sequence[str]
) -> tuple[NDArray[np.int64], list[int]]:
    """(V, N) number of each image's bucket, and by number the decoded bytes of an image."""
    numbers: dict[SizeHW, int] = {}
    buckets = np.full((len(views), len(store)), -1, dtype=np.int64)
    for index, view in enumerate(views):
        for bucket, rows in store.buckets(view).items():
            buckets[index, rows] = numbers.setdefault(bucket, len(numbers))
    shapes = [store.spec.map_shapes(bucket) for bucket in numbers]
    nbytes = [4 * sum(int(np.prod(of_bucket[level])) for level in levels) for of_bucket in shapes]
    return buckets, nbytes

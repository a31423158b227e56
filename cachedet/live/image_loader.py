"""The batches of a cached run from image files: the same plan, pixels instead of features."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedet.augmentation.draws import RandomDraws
from cachedet.augmentation.steps import Augment
from cachedet.data.views import DRAWN_AFRESH, MOST_DRAWS, make_geometry, make_targets, view_named
from cachedet.detector.end_to_end import PIXELS
from cachedet.device import single_core_threads, usable_cores
from cachedet.extraction.inputs import InputLoader
from cachedet.loading.loader import FeatureLoader, give_way
from cachedet.loading.sampling import PlannedBatch, planned_batches
from cachedet.store.reader import FeatureStore
from cachedet.structures import Batch, Targets

_CORES_OF_A_THREAD = 2  # decoding waits for nothing else, but on a CPU the step takes all cores
_MOST_THREADS = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageLoader:
    """Decodes batches ahead of the training step, in background threads.

    Where the plan says a jitter or colour view, each epoch has a draw of its own of the same
    recipe, which no cache can offer: this is what cached views are compared with.
    """

    plans: FeatureLoader  # says which images and views make up each batch
    views: tuple[str, ...]  # names by the plan's view index
    store: FeatureStore  # says which images and boxes there are; its features are not read
    inputs: InputLoader  # reads the image of a row
    device: torch.device
    fresh: bool = True  # whether these are drawn anew every epoch; else as in the store
    augment: Augment | None = None  # with the draws that a cached run of this seed has
    seed: int = 0

    def plan(self, epoch: int) -> list[NDArray[np.int64]]:
        """See FeatureLoader."""
        return self.plans.plan(epoch)

    def epoch(
        self, epoch: int, *, skip: int = 0, until: int | None = None
    ) -> Generator[Batch, None, None]:
        """See FeatureLoader. Raises BadImageError at the batch that cannot be read."""
        return self.read_ahead(planned_batches(self.plan, epoch, skip=skip, until=until))

    def read_ahead(self, planned: Iterable[PlannedBatch]) -> Generator[Batch, None, None]:
        """See FeatureLoader."""
        waiting: deque[Future[Batch]] = deque()
        workers = decoding_threads()
        decoders, collector = (
            single_core_threads(threads, name, begin=partial(give_way, self.device.type))
            for threads, name in ((workers, "decode"), (1, "collect"))
        )
        try:
            for keys, epoch, number in planned:
                views = [fresh_view(v, epoch) for v in self.views] if self.fresh else self.views
                pairs = [(int(row), views[view]) for view, row in keys]
                jobs = [decoders.submit(self.inputs.load, row, view) for row, view in pairs]
                draws = RandomDraws((self.seed, epoch, number), indices=range(len(keys)))
                waiting.append(collector.submit(self._collect, pairs, jobs, draws))
                if len(waiting) > 1 + math.ceil(workers / len(pairs)):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            decoders.shutdown(cancel_futures=True)
            collector.shutdown(cancel_futures=True)

    def _collect(
        self, pairs: list[tuple[int, str]], jobs: list[Future[Tensor]], draws: RandomDraws
    ) -> Batch:
        batch = Batch(
            features={PIXELS: torch.stack([job.result() for job in jobs])},
            targets=[self._targets(row, view) for row, view in pairs],
        )
        if self.augment is not None:
            batch = self.augment(batch, draws)
        if self.device.type == "cuda":
            pinned = {PIXELS: batch.features[PIXELS].pin_memory()}
            batch = replace(batch, features=pinned)
        return batch

    def _targets(self, row: int, view: str) -> Targets:
        """Ground truth in pixels of a view, which the store need not hold."""
        annotations = self.store.annotations
        geometry = make_geometry(
            view_named(view),
            image_hw=annotations.size_of(row),
            image_id=int(annotations.image_ids[row]),
            image_size=self.inputs.image_size,
            pad_multiple=self.inputs.pad_multiple,
        )
        return make_targets(annotations, row, geometry)


def fresh_view(name: str, epoch: int) -> str:
    """Name the view an epoch shows: of jitter and colour the draw of this epoch.

    They are counted from the last one, and those of a store from the first, so that the two meet in
    long runs only.
    """
    view = view_named(name)
    if view.family not in DRAWN_AFRESH:
        return name
    return replace(view, draw=MOST_DRAWS - 1 - epoch % MOST_DRAWS).name


def decoding_threads() -> int:
    """Count the threads that decode beside a step."""
    return max(1, min(_MOST_THREADS, (usable_cores() or 1) // _CORES_OF_A_THREAD))

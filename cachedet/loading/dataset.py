"""A store as a map-style data set, for `torch.utils.data.DataLoader` and what is built on it.

Letters: n images of a batch, C channels, h w feature cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, Sampler

from cachedet.errors import ConfigError
from cachedet.loading.loader import FeatureLoader
from cachedet.loading.sampling import resolve_views
from cachedet.loading.targets import targets_of
from cachedet.store.reader import FeatureStore
from cachedet.structures import Batch, Features, Targets


class Item(NamedTuple):
    """One view of one image."""

    features: Features  # C levels (C, h, w) float32
    targets: Targets  # boxes in pixels of the view


class FeatureDataset(Dataset[Item]):
    """Every view of every image of a store, decoded in the process that asks for it.

    It can be pickled, and works in workers that were forked or spawned.

    Args:
        store: to read.
        views: names, or families such as "jitter"; all that it holds by default. Item
            `row * len(views) + n` is view number n of image `row`.
        levels: to read; all by default.

    Raises:
        ConfigError: views the store lacks.
        MissingFeatureError: levels the store lacks, or blocks of these views not extracted yet.

    Examples:
        >>> dataset = cachedet.FeatureDataset(cachedet.open_store("train.zarr"), views=["base"])
        >>> loader = DataLoader(dataset, batch_size=4, collate_fn=cachedet.collate)
    """

    def __init__(
        self,
        store: FeatureStore,
        *,
        views: Sequence[str] | None = None,
        levels: Sequence[str] | None = None,
    ) -> None:
        self.store = store
        self.views = tuple(resolve_views(views, held=store.views, where=store.location))
        self.levels = tuple(levels) if levels is not None else store.spec.names
        store.require_complete(self.views)

    def __len__(self) -> int:
        return len(self.store) * len(self.views)

    def __getitem__(self, index: int) -> Item:
        """Raises IndexError beyond the last item, and what `FeatureStore.read` raises."""
        if not 0 <= index < len(self):
            raise IndexError(f"expected an item from 0 to {len(self) - 1}, got {index}")
        row, number = divmod(index, len(self.views))
        view = self.views[number]
        features = self.store.read(row, view, self.levels)
        return Item(features, targets_of(self.store, row, view))

    def batches(self, *, batch_size: int, seed: int = 0) -> BucketBatches:
        """For `DataLoader(batch_sampler=...)`: images of one padded size together, none padded."""
        return BucketBatches(self, batch_size=batch_size, seed=seed)


class BucketBatches(Sampler[list[int]]):
    """One view of each image an epoch, drawn and ordered as cachedet's own loader does."""

    def __init__(self, dataset: FeatureDataset, *, batch_size: int, seed: int = 0) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        self.epoch = 0  # whose order is given next; counted up by each pass over it
        self._num_views = len(dataset.views)
        self._loader = FeatureLoader(
            dataset.store,
            views=dataset.views,
            levels=dataset.levels,
            batch_size=batch_size,
            seed=seed,
        )

    def __len__(self) -> int:
        return len(self._loader.plan(self.epoch))

    def __iter__(self) -> Iterator[list[int]]:
        plan = self._loader.plan(self.epoch)
        self.epoch += 1
        for keys in plan:
            yield [int(row) * self._num_views + int(view) for view, row in keys]


def collate(items: Sequence[Item]) -> Batch:
    """One batch of items; maps smaller than the largest get zeros at the bottom and the right.

    Returns:
        features (n, C, h, w) by level, and the targets of the n images.

    Examples:
        >>> DataLoader(dataset, batch_size=4, collate_fn=cachedet.collate)
    """
    features = {}
    for level in items[0].features:
        maps = [item.features[level] for item in items]
        height, width = (max(one.shape[axis] for one in maps) for axis in (1, 2))
        features[level] = torch.stack(
            [F.pad(one, (0, width - one.shape[2], 0, height - one.shape[1])) for one in maps]
        )
    return Batch(features=features, targets=[item.targets for item in items])

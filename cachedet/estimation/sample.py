"""Which images and batches stand for all of them.

Letters: V views, N images. Everything is a pure function of its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cachedet.config.run import ClassBalancedConfig, RepeatFactorConfig, TrainConfig
from cachedet.data.views import View, padded_size
from cachedet.loading.sampling import (
    Sampler,
    make_class_balanced_sampler,
    make_repeat_factor_sampler,
    plan_epoch,
    resolve_views,
)
from cachedet.structures import Annotations, SizeHW

Keys = NDArray[np.int64]
"""(n, 2) view index and row of each image of a batch."""


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """A batch in numbers."""

    bucket: SizeHW  # padded (height, width)
    images: int

    @property
    def pixels(self) -> int:
        return self.images * self.bucket[0] * self.bucket[1]

    def limited(self, most: int) -> BatchShape:
        """The same with at most so many images."""
        return BatchShape(bucket=self.bucket, images=min(self.images, most))


def padded_sizes(
    annotations: Annotations, views: Sequence[View], *, image_size: int, pad_multiple: int
) -> NDArray[np.int64]:
    """(V, N, 2) padded height and width of each view of each image."""
    unique, place = np.unique(annotations.sizes_hw, axis=0, return_inverse=True)
    found = [
        [
            padded_size(
                view, image_hw=(height, width), image_size=image_size, pad_multiple=pad_multiple
            )
            for height, width in unique.tolist()
        ]
        for view in views
    ]
    return np.array(found, dtype=np.int64)[:, place.reshape(-1)]


def count_pixels(sizes: NDArray[np.int64]) -> int:
    """Padded pixels of all views of all images; sizes as from `padded_sizes`."""
    return int(sizes.prod(axis=2).sum())


def commonest_size(sizes: NDArray[np.int64]) -> tuple[SizeHW, list[int]]:
    """Of (N, 2) sizes the one that most rows have, and those rows."""
    found, numbers, counts = np.unique(sizes, axis=0, return_inverse=True, return_counts=True)
    place = int(np.argmax(counts))
    return _as_size(found[place]), np.flatnonzero(numbers.reshape(-1) == place).tolist()


def spread_rows(sizes: NDArray[np.int64], count: int) -> list[int]:
    """At most `count` rows, in order: small, usual and the largest images as often as they come.

    Args:
        sizes: (V, N, 2) as from `padded_sizes`.
        count: images wanted.
    """
    pixels = sizes.prod(axis=2).sum(axis=0)
    by_pixels = np.argsort(pixels, kind="stable")
    places = np.linspace(0, len(pixels) - 1, min(count, len(pixels))).round().astype(int)
    return sorted(by_pixels[places].tolist())


def epoch_batches(
    annotations: Annotations,
    sizes: NDArray[np.int64],
    views: Sequence[View],
    config: TrainConfig,
    *,
    where: str,
) -> tuple[list[BatchShape], list[int]]:
    """The batches of the first epoch of a training on all images, and the views it shows.

    Args:
        annotations: of all images.
        sizes: (V, N, 2) of `views`.
        views: of the store.
        config: of the run.
        where: names the store in messages.

    Raises ConfigError: views the store will not have, or a sampling that needs boxes.
    """
    held = [view.name for view in views]
    chances = resolve_views(config.views, held=held, where=where)
    shown = [held.index(name) for name in chances]
    own = sizes[shown]
    buckets, numbers = np.unique(own.reshape(-1, 2), axis=0, return_inverse=True)
    table = numbers.reshape(own.shape[:2])
    plan = plan_epoch(
        table,
        batch_size=config.schedule.batch_size,
        seed=config.seed,
        epoch=0,
        sampler=_make_sampler(config, annotations),
        probabilities=tuple(chances.values()),
    )
    batches = [
        BatchShape(bucket=_as_size(buckets[table[tuple(keys[0])]]), images=len(keys))
        for keys in plan
    ]
    return batches, shown


def spread_batches(batches: Sequence[BatchShape], count: int) -> list[BatchShape]:
    """At most `count` of them, small and large ones as often as they come, mixed."""
    ordered = sorted(batches, key=lambda batch: batch.pixels)
    count = min(count, len(ordered))
    picked = [ordered[int((place + 0.5) * len(ordered) / count)] for place in range(count)]
    return [picked[place] for place in np.random.default_rng(0).permutation(count)]


def largest_batch(batches: Sequence[BatchShape]) -> BatchShape:
    """The one that needs most memory."""
    return max(batches, key=lambda batch: batch.pixels)


def keys_like(
    shape: BatchShape, held: Mapping[SizeHW, Keys], *, start: int = 0
) -> tuple[Keys, BatchShape]:
    """A batch like `shape` of images that are there, each as often as it takes; and its shape.

    Args:
        shape: of the batch.
        held: images by bucket; where its own is not there, the one nearest in pixels is taken.
        start: the first of them.
    """
    wanted = shape.bucket[0] * shape.bucket[1]
    bucket = (
        shape.bucket
        if shape.bucket in held
        else min(held, key=lambda own: abs(own[0] * own[1] - wanted))
    )
    keys = held[bucket][(start + np.arange(shape.images)) % len(held[bucket])]
    return keys, BatchShape(bucket=bucket, images=shape.images)


def _make_sampler(config: TrainConfig, annotations: Annotations) -> Sampler | None:
    sampling = config.sampling
    if isinstance(sampling, RepeatFactorConfig):
        return make_repeat_factor_sampler(annotations, threshold=sampling.threshold)
    return (
        make_class_balanced_sampler(annotations)
        if isinstance(sampling, ClassBalancedConfig)
        else None
    )


def _as_size(size: NDArray[np.int64]) -> SizeHW:
    return int(size[0]), int(size[1])

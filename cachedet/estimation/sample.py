"""Images and batches that stand for all of them.

Letters: V views, N images. Everything is a pure function of its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cachedet.config.run import TrainConfig
from cachedet.data.views import View, padded_size
from cachedet.loading.sampling import make_sampler, plan_epoch, resolve_views
from cachedet.structures import Annotations, SizeHW

_BATCHES = 8  # that stand for an epoch
_STEP_SECONDS = 6.0  # of a step beyond which fewer images are taken than a batch has
_LEAST_IMAGES = 8  # that are always taken
_FORWARDS = 5.0  # that a fine-tuning step takes, heads included, at most

Sizes = NDArray[np.int64]
"""(V, N, 2) padded height and width of each view of each image."""
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
        """Take at most so many of its images."""
        return replace(self, images=min(self.images, most))


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialBatches:
    """Batches of the trial store that are like those of the epoch."""

    warm_up: Keys  # like the largest
    timed: tuple[Keys, ...]  # like small, usual and large ones
    pixels: tuple[int, ...]  # padded, of each timed one
    enlarge: float = 1.0  # pixels of the largest batch of the epoch over those of the warm-up


def padded_sizes(
    annotations: Annotations, views: Sequence[View], *, image_size: int, pad_multiple: int
) -> Sizes:
    """Sizes of every view, by the long side of an image and the multiple of both sides."""
    unique, numbers = np.unique(annotations.sizes_hw, axis=0, return_inverse=True)
    size_of = partial(padded_size, image_size=image_size, pad_multiple=pad_multiple)
    by_view = [[size_of(view, image_hw=(h, w)) for h, w in unique.tolist()] for view in views]
    return np.array(by_view, dtype=np.int64)[:, numbers.reshape(-1)]


def count_pixels(sizes: Sizes) -> int:
    """Padded pixels of all views of all images."""
    return int(sizes.prod(axis=2).sum())


def commonest_size(sizes: NDArray[np.int64]) -> tuple[SizeHW, list[int]]:
    """Find the one of (N, 2) sizes that most rows have, and those rows."""
    unique, numbers, counts = np.unique(sizes, axis=0, return_inverse=True, return_counts=True)
    most = int(np.argmax(counts))
    return _as_size(unique[most]), np.flatnonzero(numbers.reshape(-1) == most).tolist()


def spread_rows(sizes: Sizes, count: int) -> list[int]:
    """Pick at most `count` rows, in order; small, usual and large images as often as they come."""
    pixels = sizes.prod(axis=2).sum(axis=0)
    by_pixels = np.argsort(pixels, kind="stable")
    picked = np.linspace(0, len(pixels) - 1, min(count, len(pixels))).round().astype(int)
    return sorted(by_pixels[picked].tolist())


def epoch_batches(
    annotations: Annotations,
    sizes: Sizes,
    views: Sequence[View],
    config: TrainConfig,
    *,
    where: str,
) -> tuple[list[BatchShape], list[int]]:
    """The batches of the first epoch of a training on all images, and the views it shows.

    `sizes` are those of `views`, which the store will have; `where` names the store in messages.

    Raises ConfigError: views the store will not have, or a sampling that needs boxes.
    """
    held = [view.name for view in views]
    probabilities = resolve_views(config.views, held=held, where=where)
    shown = [held.index(name) for name in probabilities]
    shown_sizes = sizes[shown]
    buckets, numbers = np.unique(shown_sizes.reshape(-1, 2), axis=0, return_inverse=True)
    table = numbers.reshape(shown_sizes.shape[:2])
    plan = plan_epoch(
        table,
        batch_size=config.schedule.batch_size,
        seed=config.seed,
        epoch=0,
        sampler=make_sampler(config.sampling, annotations),
        probabilities=tuple(probabilities.values()),
    )
    batches = [
        BatchShape(bucket=_as_size(buckets[table[tuple(keys[0])]]), images=len(keys))
        for keys in plan
    ]
    return batches, shown


def most_images(forward_seconds: float) -> int:
    """Images of a batch that can be tried in seconds; a forward of the backbone is of one image."""
    return max(_LEAST_IMAGES, int(_STEP_SECONDS / (_FORWARDS * max(forward_seconds, 1e-9))))


def choose_batches(
    epoch: Sequence[BatchShape], held: Mapping[SizeHW, Keys], *, most_images: int
) -> TrialBatches:
    """Batches for the trials of an epoch, of the images that are `held`, by bucket.

    Of a batch of more than `most_images` a part is taken.
    """
    largest = max(epoch, key=lambda batch: batch.pixels)
    warm_up, warm_shape = keys_like(largest.limited(most_images), held)
    chosen = [batch.limited(most_images) for batch in spread_batches(epoch, _BATCHES)]
    timed = [
        keys_like(batch, held, start=number * batch.images) for number, batch in enumerate(chosen)
    ]
    return TrialBatches(
        warm_up=warm_up,
        timed=tuple(keys for keys, _ in timed),
        pixels=tuple(shape.pixels for _, shape in timed),
        enlarge=largest.pixels / warm_shape.pixels,
    )


def spread_batches(batches: Sequence[BatchShape], count: int) -> list[BatchShape]:
    """Pick at most `count` of them, small and large ones as often as they come, mixed."""
    ordered = sorted(batches, key=lambda batch: batch.pixels)
    count = min(count, len(ordered))
    picked = [ordered[int((number + 0.5) * len(ordered) / count)] for number in range(count)]
    return [picked[number] for number in np.random.default_rng(0).permutation(count)]


def keys_like(
    shape: BatchShape, held: Mapping[SizeHW, Keys], *, start: int = 0
) -> tuple[Keys, BatchShape]:
    """A batch like `shape` of images that are held, each as often as it takes; and its shape.

    Where the bucket is not held, the one nearest in pixels is taken. `start` is the first image.
    """
    wanted = shape.bucket[0] * shape.bucket[1]
    bucket = shape.bucket
    if bucket not in held:
        bucket = min(held, key=lambda size: abs(size[0] * size[1] - wanted))
    keys = held[bucket][(start + np.arange(shape.images)) % len(held[bucket])]
    return keys, BatchShape(bucket=bucket, images=shape.images)


def _as_size(size: NDArray[np.int64]) -> SizeHW:
    return int(size[0]), int(size[1])

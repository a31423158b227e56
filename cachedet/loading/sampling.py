"""Which images an epoch shows, in which views and in which order (law L6).

Everything is a pure function of (seed, epoch); nothing is remembered from epoch to epoch.
Letters: V views, N images (rows of the store), D images shown in an epoch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cachedet.config.run import ClassBalancedConfig, RepeatFactorConfig, SamplingConfig
from cachedet.data.views import view_family
from cachedet.errors import ConfigError, nearest_names
from cachedet.structures import Annotations

_MOST_NAMES = 5  # of classes in one line


class Sampler(Protocol):
    """Draws which images an epoch shows."""

    def draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """(D,) rows in the order they are shown; a row may come more than once."""


def make_sampler(config: SamplingConfig, annotations: Annotations) -> Sampler | None:
    """The sampler of a run; None: each image once. Raises ConfigError where no image has a box."""
    if isinstance(config, RepeatFactorConfig):
        return make_repeat_factor_sampler(annotations, threshold=config.threshold)
    if isinstance(config, ClassBalancedConfig):
        return make_class_balanced_sampler(annotations)
    return None


@dataclass(frozen=True, kw_only=True, eq=False)
class RepeatFactorSampler:
    """Every image as often as its repeat factor says (arXiv 1908.03195, section 6.1).

    The fractional part of a factor is the probability of one more showing, in every epoch.
    """

    factors: NDArray[np.float64]  # (N,) at least 1

    def draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        whole = np.floor(self.factors)
        extra = rng.random(len(self.factors)) < self.factors - whole
        times = (whole + extra).astype(np.int64)
        return rng.permutation(np.repeat(np.arange(len(times)), times))


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassBalancedSampler:
    """N times a class drawn at random, then an image that has it.

    For the second stage of LVIS training, which retunes the last classifier layer only. Classes
    without a box are never drawn, nor are images without one.
    """

    rows: NDArray[np.int64]  # of the images that have a class, one class after the other
    offsets: NDArray[np.int64]  # (classes with boxes + 1,) into `rows`
    num_draws: int

    def draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        classes = rng.integers(len(self.offsets) - 1, size=self.num_draws)
        counts = np.diff(self.offsets)[classes]
        drawn: NDArray[np.int64] = self.rows[self.offsets[classes] + rng.integers(counts)]
        return drawn


def make_repeat_factor_sampler(
    annotations: Annotations, *, threshold: float
) -> RepeatFactorSampler:
    """Repeat factors of the images of `annotations`.

    r(c) = max(1, sqrt(threshold / f(c))) with f(c) the share of all images that have class c;
    an image has the largest factor of its classes, 1 without a box. LVIS takes a threshold of
    0.001. Crowd boxes do not count: the losses ignore them.

    Raises ConfigError where no image has a box.
    """
    rows, labels = _classes_of_images(annotations, kind="repeat_factor")
    counts = np.bincount(labels, minlength=len(annotations.categories))
    of_class = np.sqrt(threshold * len(annotations) / np.maximum(counts, 1))
    factors = np.ones(len(annotations))
    np.maximum.at(factors, rows, of_class[labels])
    return RepeatFactorSampler(factors=factors)


def make_class_balanced_sampler(annotations: Annotations) -> ClassBalancedSampler:
    """Raises ConfigError where no image has a box."""
    rows, labels = _classes_of_images(annotations, kind="class_balanced")
    order = np.argsort(labels, kind="stable")
    counts = np.unique(labels, return_counts=True)[1]
    return ClassBalancedSampler(
        rows=rows[order],
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        num_draws=len(annotations),
    )


def describe_empty_classes(annotations: Annotations) -> str | None:
    """One line that names classes without a single box; None where every class has one."""
    counts = np.bincount(
        annotations.labels[~annotations.crowd], minlength=len(annotations.categories)
    )
    empty = [annotations.categories.names[label] for label in np.flatnonzero(counts == 0)]
    if not empty:
        return None
    names = ", ".join(empty[:_MOST_NAMES]) + (", ..." if len(empty) > _MOST_NAMES else "")
    return (
        f"{len(empty)} of {len(annotations.categories)} classes have no box to learn from and are "
        f"never sampled: {names}"
    )


def resolve_views(
    wanted: Sequence[str] | Mapping[str, float] | None, *, held: Sequence[str], where: str
) -> dict[str, float]:
    """The probability of each view, in the order wanted; their sum is 1.

    `wanted` are names or their weights; None: all views held, equally. A name is a view or a
    family (`jitter`, `crop`, ...), whose weight its members share equally. Messages call the store
    `where`.

    Raises ConfigError: names that are neither, all of them in one message.
    """
    if isinstance(wanted, str):  # as `extract` takes them
        wanted = [name.strip() for name in wanted.split(",")]
    if wanted is None:
        wanted = held
    weights = wanted if isinstance(wanted, Mapping) else dict.fromkeys(wanted, 1.0)
    families: dict[str, list[str]] = {}
    for view in held:
        families.setdefault(view_family(view), []).append(view)
    unknown = [name for name in weights if name not in held and name not in families]
    if unknown:
        plural = [family for family in families if family not in held]
        raise ConfigError(
            f"views: {where} has no {', '.join(map(repr, unknown))}"
            f"{nearest_names(unknown[0], [*held, *plural])}; it holds {', '.join(held)}"
            + (f", so also the families {', '.join(plural)}" if plural else "")
            + ". Extract the missing views, or leave them out of `views:`"
        )
    shares: dict[str, float] = {}
    for name, weight in weights.items():
        members = [name] if name in held else families[name]
        for view in members:
            shares[view] = shares.get(view, 0.0) + weight / len(members)
    total = sum(shares.values())
    return {view: share / total for view, share in shares.items()}


def plan_epoch(
    buckets: NDArray[np.int64],  # (V, N) number of the bucket that view v of image n falls into
    *,
    batch_size: int,
    seed: int,  # with `epoch`, all that the draws depend on
    epoch: int,  # from 0
    sampler: Sampler | None = None,  # None: each image once
    probabilities: Sequence[float] | None = None,  # (V,) of the views, sum 1; None: equal
) -> list[NDArray[np.int64]]:
    """The batches of one epoch.

    The sampler draws the images, and each showing draws its view. Images whose views fall into
    one bucket are batched together in the order drawn; a bucket's last batch may be smaller and is
    kept. Then the batches of all buckets are shuffled, so that small and large maps mix. A batch
    size beyond the number of images gives one batch a bucket.

    Returns batches in order, each (n, 2) pairs of view index and row, all of one bucket.
    """
    rng = np.random.default_rng([seed, epoch])
    num_views, num_rows = buckets.shape
    rows = rng.permutation(num_rows) if sampler is None else sampler.draw(rng)
    views = _draw_views(rng, probabilities or [1 / num_views] * num_views, count=len(rows))
    drawn = buckets[views, rows]
    by_bucket = np.argsort(drawn, kind="stable")
    pairs = np.stack([views, rows], axis=1)[by_bucket]
    sizes = np.unique(drawn, return_counts=True)[1]
    batches: list[NDArray[np.int64]] = []
    for start, size in zip(np.cumsum(sizes) - sizes, sizes, strict=True):
        of_bucket = pairs[start : start + size]
        batches.extend(of_bucket[at : at + batch_size] for at in range(0, size, batch_size))
    return [batches[index] for index in rng.permutation(len(batches))]


class PlannedBatch(NamedTuple):
    """A batch, and where it comes in the run: the draws of its augmentation depend on that."""

    keys: NDArray[np.int64]  # (n, 2) view index and row, as in a plan
    epoch: int = 0
    number: int = 0  # within the epoch


def planned_batches(
    plan: Callable[[int], Sequence[NDArray[np.int64]]],
    epoch: int,
    *,
    skip: int = 0,
    until: int | None = None,
) -> Iterator[PlannedBatch]:
    """The batches of `epoch` from number `skip` on, then all of the epochs before `until`."""
    for each in range(epoch, epoch + 1 if until is None else until):
        for number, keys in enumerate(plan(each)):
            if each > epoch or number >= skip:
                yield PlannedBatch(keys, each, number)


def indices_of_rank(images: int, *, rank: int, world_size: int) -> range:
    """Which images of a global batch one of `world_size` processes reads.

    Every `world_size`-th from `rank` on. A batch of fewer images than processes is read whole by
    all of them: their gradients are then equal, and so is the mean.
    """
    if images < world_size:
        return range(images)
    return range(rank, images, world_size)


def _draw_views(
    rng: np.random.Generator, probabilities: Sequence[float], *, count: int
) -> NDArray[np.int64]:
    if len(set(probabilities)) == 1:
        return np.asarray(rng.integers(len(probabilities), size=count))
    ends = np.cumsum(probabilities)
    return np.searchsorted(ends[:-1] / ends[-1], rng.random(count), side="right")


def _classes_of_images(
    annotations: Annotations, *, kind: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each (row, label) once, by row: which classes each image has. Raises ConfigError."""
    num_classes = len(annotations.categories)
    of_boxes = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    pairs = np.sort(
        (of_boxes * num_classes + annotations.labels)[~annotations.crowd], kind="stable"
    )
    pairs = pairs[np.diff(pairs, prepend=-1) != 0]  # 8 times as fast as np.unique
    if not len(pairs):
        raise ConfigError(
            f"sampling.kind={kind} needs boxes, but none of the {len(annotations)} images of the "
            "store has one; use sampling.kind=uniform, or extract with annotations that have boxes"
        )
    return pairs // num_classes, pairs % num_classes

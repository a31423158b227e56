"""What two sets of annotations say differently of the same images."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cachedet.structures import Annotations, CategoryMap


class _Object(NamedTuple):
    box: tuple[float, ...]
    category_id: int
    rest: tuple[bool, float, bytes]  # crowd, area, mask


@dataclass(frozen=True, kw_only=True)
class LabelChanges:
    """Counts of boxes, and classes by name and id."""

    images: int  # whose annotations differ in more than the order of their boxes
    added: int
    removed: int
    moved: int  # of the same class, and overlapping what it was
    reclassified: int  # the same box, another class
    edited: int  # the same box and class, another mask, area or crowd flag
    classes_added: tuple[str, ...]
    classes_removed: tuple[str, ...]
    classes_renamed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    def lines(self) -> list[str]:
        """For a person: only what there is."""
        kinds = ("added", "removed", "moved", "reclassified", "edited")
        boxes = [f"{getattr(self, kind):,} {kind}" for kind in kinds if getattr(self, kind)]
        lines = [f"boxes: {', '.join(boxes)}, in {self.images:,} images"] if boxes else []
        for kind in ("added", "removed", "renamed"):
            names = getattr(self, f"classes_{kind}")
            lines += [f"classes {kind}: {', '.join(names)}"] if names else []
        return lines


def compare_labels(before: Annotations, now: Annotations) -> LabelChanges:
    """What `now` says otherwise than `before`; both describe the same images in the same order.

    Classes are told apart by their ids.
    """
    counts: Counter[str] = Counter()
    for old, new in zip(_objects(before), _objects(now), strict=True):
        if old != new:
            of_image = _compare_objects(old, new)
            counts += of_image
            counts["images"] += bool(of_image)
    old_names, new_names = (_by_id(each.categories) for each in (before, now))
    return LabelChanges(
        images=counts["images"],
        added=counts["added"],
        removed=counts["removed"],
        moved=counts["moved"],
        reclassified=counts["reclassified"],
        edited=counts["edited"],
        classes_added=_missing_in(old_names, new_names),
        classes_removed=_missing_in(new_names, old_names),
        classes_renamed=tuple(
            f"{_named(old_names, number)} to {name}"
            for number, name in new_names.items()
            if old_names.get(number, name) != name
        ),
    )


def _objects(annotations: Annotations) -> list[list[_Object]]:
    """By image. Whole arrays become lists at once: a call an image would take seconds."""
    ids, masks = annotations.categories.ids, annotations.masks
    every = [
        _Object(tuple(box), ids[label], (crowd, area, b"" if masks is None else masks[number]))
        for number, (box, label, crowd, area) in enumerate(
            zip(
                annotations.boxes.tolist(),
                annotations.labels.tolist(),
                annotations.crowd.tolist(),
                annotations.areas.tolist(),
                strict=True,
            )
        )
    ]
    offsets = annotations.offsets.tolist()
    return [every[start:end] for start, end in itertools.pairwise(offsets)]


def _compare_objects(old: Sequence[_Object], new: Sequence[_Object]) -> Counter[str]:
    """Each object that differs counts once, as the least that can have happened to it."""
    left, right, _ = _pair_off(old, new, lambda one: one)
    left, right, edited = _pair_off(left, right, lambda one: (one.box, one.category_id))
    left, right, reclassified = _pair_off(left, right, lambda one: one.box)
    moved = _count_moved(left, right)
    counts = {"edited": edited, "reclassified": reclassified, "moved": moved}
    return +Counter({**counts, "removed": len(left) - moved, "added": len(right) - moved})


def _pair_off(
    left: Sequence[_Object], right: Sequence[_Object], key: Callable[[_Object], Hashable]
) -> tuple[list[_Object], list[_Object], int]:
    """What has no twin with the same key on the other side, and how many pairs there were."""
    waiting: dict[Hashable, list[_Object]] = {}
    for one in right:
        waiting.setdefault(key(one), []).append(one)
    alone = []
    for one in left:
        twins = waiting.get(key(one))
        if twins:
            twins.pop()
        else:
            alone.append(one)
    return alone, [one for twins in waiting.values() for one in twins], len(left) - len(alone)


def _count_moved(left: Sequence[_Object], right: Sequence[_Object]) -> int:
    """Pairs of one class that overlap, the closest first."""
    if not left or not right:
        return 0
    old, new = (np.array([one.box for one in side]) for side in (left, right))
    low = np.maximum(old[:, None, :2], new[None, :, :2])
    high = np.minimum(old[:, None, 2:], new[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (old, new)]
    union = areas[0][:, None] + areas[1][None] - shared
    overlap = shared / np.maximum(union, np.finfo(np.float64).tiny)
    classes = [np.array([one.category_id for one in side]) for side in (left, right)]
    overlap[classes[0][:, None] != classes[1][None]] = 0
    pairs = 0
    for place in np.argsort(-overlap, axis=None, kind="stable").tolist():
        row, column = divmod(place, len(right))
        if overlap[row, column] <= 0:
            continue
        overlap[row, :] = overlap[:, column] = 0
        pairs += 1
    return pairs


def _by_id(categories: CategoryMap) -> dict[int, str]:
    return dict(zip(categories.ids, categories.names, strict=True))


def _named(names: dict[int, str], number: int) -> str:
    return f"{names[number]} (id {number})"


def _missing_in(some: dict[int, str], names: dict[int, str]) -> tuple[str, ...]:
    return tuple(_named(names, number) for number in names if number not in some)

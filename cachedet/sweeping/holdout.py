"""The validation images in two parts: one chooses, the other reports what the choice is worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cachedet.errors import InputError
from cachedet.progress import count_of
from cachedet.structures import Annotations

_FEW = 30  # held-out images below which only large differences can be told


@dataclass(frozen=True, kw_only=True)
class Split:
    """Rows of the validation store, each part rising."""

    choosing: tuple[int, ...]
    reporting: tuple[int, ...]

    @property
    def note(self) -> str:
        """What a person should know before hours of training; empty where there is nothing."""
        count = len(self.reporting)
        if count >= _FEW:
            return ""
        return (
            f"only {count_of(count, 'validation image')} report what the winner is worth: likely "
            "no difference can be told. More validation images, or a larger --holdout, help"
        )


def split_images(annotations: Annotations, *, holdout: float, seed: int) -> Split:
    """Deal out whole images so that each class has about its share of images in both parts.

    Images are dealt by the rarest class they hold, those of the rarest class first.

    Raises InputError where a part would be without images or boxes.
    """
    if not 0 < holdout < 1:
        raise InputError(f"--holdout expects a share between 0 and 1, such as 0.5, got {holdout:g}")
    rng = np.random.default_rng([seed, len(annotations)])
    reporting: list[int] = []
    due = rng.random()  # the part of an image that rounding owes the reporting part
    for group in _by_rarest_class(annotations):
        due += holdout * len(group)
        count = int(due)
        due -= count
        reporting += rng.permutation(group)[:count].tolist()
    chosen = np.setdiff1d(np.arange(len(annotations)), reporting)
    split = Split(choosing=tuple(chosen.tolist()), reporting=tuple(sorted(reporting)))
    for name, rows in (("choose", split.choosing), ("report", split.reporting)):
        part = annotations.keep_rows(rows)
        if not len(part) or not np.any(~part.crowd):
            raise InputError(
                f"--holdout {holdout:g} of {count_of(len(annotations), 'validation image')} leaves "
                f"the part that is to {name} with {count_of(len(part), 'image')} and no box: both "
                "parts need images with boxes; validate on more images, or choose another --holdout"
            )
    return split


def _by_rarest_class(annotations: Annotations) -> list[list[int]]:
    """Rows in groups: those that hold the rarest class, ... , at last those without a box."""
    starts, labels = annotations.offsets, np.where(annotations.crowd, -1, annotations.labels)
    of_image = [{*labels[starts[row] : starts[row + 1]].tolist()} - {-1}
                for row in range(len(annotations))]  # fmt: skip
    images = np.zeros(len(annotations.categories), dtype=np.int64)
    for classes in of_image:
        images[list(classes)] += 1
    groups: dict[int, list[int]] = {}
    for row, classes in enumerate(of_image):
        rarest = min(classes, key=lambda label: (images[label], label), default=-1)
        groups.setdefault(rarest, []).append(row)
    order = sorted(groups, key=lambda label: (label < 0, images[label], label))
    return [groups[label] for label in order]

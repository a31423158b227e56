"""What augmentation draws. Everything comes from the generators that are handed in (law L6)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch


class RandomDraws:
    """Generators of one batch: one for all of it, one for each of its images.

    They depend on these numbers alone, so an image's draws are the same whichever process has it
    and whatever else that process has.
    """

    def __init__(self, entropy: Sequence[int], *, indices: Sequence[int]) -> None:
        self._entropy = tuple(entropy)  # seed, epoch and number of the batch
        self._indices = indices  # in the global batch, of the images that are here
        self._images: dict[int, torch.Generator] = {}

    @cached_property
    def of_batch(self) -> torch.Generator:
        """For what all images of the batch share."""
        return _make_generator((*self._entropy, 0))

    def of_image(self, image: int) -> torch.Generator:
        """For one image, by its number among those that are here."""
        if image not in self._images:
            entropy = (*self._entropy, 1 + self._indices[image])
            self._images[image] = _make_generator(entropy)
        return self._images[image]


def draw_images(count: int, *, probability: float, draws: RandomDraws) -> list[int]:
    """Which of `count` images are drawn, in order."""
    return [n for n in range(count) if is_drawn(probability, draws.of_image(n))]


def is_drawn(probability: float, generator: torch.Generator) -> bool:
    """True with this probability."""
    return float(torch.rand((), generator=generator)) < probability


def draw_number(least: int, most: int, generator: torch.Generator) -> int:
    """A whole number from `least` to `most`, both included, all equally likely."""
    return int(torch.randint(least, most + 1, (), generator=generator))


def _make_generator(entropy: Sequence[int]) -> torch.Generator:
    seed = int(np.random.SeedSequence(list(entropy)).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed)

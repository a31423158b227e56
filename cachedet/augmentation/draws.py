"""What augmentation draws. Everything comes from the generators that are handed in (law L6)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch


class Draws:
    """Generators of one batch: one for all of it, one for each of its pictures.

    They depend on these numbers alone, so a picture's draws are the same whichever process has it
    and whatever else that process has.

    Args:
        entropy: what tells this batch from others: seed, epoch, number of the batch.
        places: in the global batch, of the pictures that are here.
    """

    def __init__(self, entropy: Sequence[int], *, places: Sequence[int]) -> None:
        self._entropy = tuple(entropy)
        self._places = places
        self._pictures: dict[int, torch.Generator] = {}

    @cached_property
    def of_batch(self) -> torch.Generator:
        """Of what all its pictures share."""
        return _make_generator((*self._entropy, 0))

    def of_picture(self, picture: int) -> torch.Generator:
        """Of a picture by its number in the batch."""
        if picture not in self._pictures:
            entropy = (*self._entropy, 1 + self._places[picture])
            self._pictures[picture] = _make_generator(entropy)
        return self._pictures[picture]


def draw_pictures(count: int, *, chance: float, draws: Draws) -> list[int]:
    """Which of `count` pictures are drawn, each with this chance, in order."""
    return [n for n in range(count) if is_drawn(chance, draws.of_picture(n))]


def is_drawn(chance: float, generator: torch.Generator) -> bool:
    """True with this chance."""
    return float(torch.rand((), generator=generator)) < chance


def draw_number(least: int, most: int, generator: torch.Generator) -> int:
    """A whole number from `least` to `most`, both included, all equally likely."""
    return int(torch.randint(least, most + 1, (), generator=generator))


def draw_others(picture: int, *, count: int, wanted: int, generator: torch.Generator) -> list[int]:
    """`wanted` of `count` pictures other than `picture`: different ones if there are enough."""
    others = [other for other in range(count) if other != picture]
    if len(others) >= wanted:
        order = torch.randperm(len(others), generator=generator)[:wanted]
    else:
        order = torch.randint(len(others), (wanted,), generator=generator)
    return [others[place] for place in order.tolist()]


def _make_generator(entropy: Sequence[int]) -> torch.Generator:
    seed = int(np.random.SeedSequence(list(entropy)).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed)

"""What augmentation draws. Everything comes from the generator that is handed in (law L6)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def make_generator(entropy: Sequence[int]) -> torch.Generator:
    """A generator of these numbers alone, such as seed, epoch, number of the batch and rank."""
    seed = int(np.random.SeedSequence(list(entropy)).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed)


def draw_pictures(count: int, *, chance: float, generator: torch.Generator) -> list[int]:
    """Which of `count` pictures are drawn, each with this chance, in order."""
    drawn = torch.rand(count, generator=generator) < chance
    numbers: list[int] = drawn.nonzero()[:, 0].tolist()
    return numbers


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

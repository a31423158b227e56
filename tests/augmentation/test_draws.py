from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.augmentation.draws import RandomDraws, draw_images, draw_number, draw_others


def test_numbers_are_equally_likely_and_both_ends_occur() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = Counter(draw_number(-2, 2, generator) for _ in range(3000))
    assert sorted(counts) == [-2, -1, 0, 1, 2]
    assert min(counts.values()) > 500


def test_images_are_drawn_with_their_chance() -> None:
    draws = RandomDraws((0,), places=range(4000))
    drawn = draw_images(4000, chance=0.25, draws=draws)
    assert drawn == sorted(set(drawn))
    assert 900 < len(drawn) < 1100
    assert draw_images(50, chance=0.0, draws=draws) == []
    assert draw_images(50, chance=1.0, draws=draws) == list(range(50))


def test_a_image_draws_the_same_whoever_has_it() -> None:
    def numbers(draws: RandomDraws, image: int) -> list[float]:
        return torch.rand(4, generator=draws.of_image(image)).tolist()

    whole, share = (
        RandomDraws((3, 1, 7), places=range(6)),
        RandomDraws((3, 1, 7), places=range(1, 6, 2)),
    )
    drawn = [numbers(whole, image) for image in range(6)]
    assert [numbers(share, image) for image in (2, 0, 1)] == [drawn[5], drawn[1], drawn[3]]
    others = [
        numbers(RandomDraws(entropy, places=range(6)), 0) for entropy in ((3, 1, 8), (4, 1, 7))
    ]
    of_batch = torch.rand(4, generator=whole.of_batch).tolist()
    assert len({tuple(own) for own in (*drawn, *others, of_batch)}) == 9


@settings(deadline=None, max_examples=60, derandomize=True)
@given(count=st.integers(2, 7), wanted=st.integers(1, 5), seed=st.integers(0, 2**40))
def test_others_are_never_the_image_itself(count: int, wanted: int, seed: int) -> None:
    others = draw_others(
        1, count=count, wanted=wanted, generator=torch.Generator().manual_seed(seed)
    )
    assert len(others) == wanted
    assert set(others) <= set(range(count)) - {1}
    assert len(set(others)) == wanted or wanted > count - 1

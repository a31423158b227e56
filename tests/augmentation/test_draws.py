from __future__ import annotations

from collections import Counter

import torch

from cachedet.augmentation.draws import RandomDraws, draw_images, draw_number


def test_numbers_are_equally_likely_and_both_ends_occur() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = Counter(draw_number(-2, 2, generator) for _ in range(3000))
    assert sorted(counts) == [-2, -1, 0, 1, 2]
    assert min(counts.values()) > 500


def test_images_are_drawn_with_their_probability() -> None:
    draws = RandomDraws((0,), indices=range(4000))
    drawn = draw_images(4000, probability=0.25, draws=draws)
    assert drawn == sorted(set(drawn))
    assert 900 < len(drawn) < 1100
    assert draw_images(50, probability=0.0, draws=draws) == []
    assert draw_images(50, probability=1.0, draws=draws) == list(range(50))


def test_an_image_draws_the_same_whoever_has_it() -> None:
    def numbers(draws: RandomDraws, image: int) -> list[float]:
        return torch.rand(4, generator=draws.of_image(image)).tolist()

    whole, share = (
        RandomDraws((3, 1, 7), indices=range(6)),
        RandomDraws((3, 1, 7), indices=range(1, 6, 2)),
    )
    drawn = [numbers(whole, image) for image in range(6)]
    assert [numbers(share, image) for image in (2, 0, 1)] == [drawn[5], drawn[1], drawn[3]]
    others = [
        numbers(RandomDraws(entropy, indices=range(6)), 0) for entropy in ((3, 1, 8), (4, 1, 7))
    ]
    of_batch = torch.rand(4, generator=whole.of_batch).tolist()
    assert len({tuple(each) for each in (*drawn, *others, of_batch)}) == 9

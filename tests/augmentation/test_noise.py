from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.augmentation.noise import add_noise, channel_dropout
from cachedet.structures import Batch, Targets


def make_batch(count: int = 3, channels: int = 400) -> Batch:
    """Random maps of two levels; channel c of a level is c + 1 times as strong as the first."""
    generator = torch.Generator().manual_seed(3)
    strength = torch.arange(1.0, channels + 1)[:, None, None] / channels
    targets = Targets(
        image_id=1,
        size_hw=(64, 48),
        boxes=torch.tensor([[1.0, 2, 3, 4]]),
        labels=torch.tensor([0]),
        crowd=torch.tensor([False]),
    )
    return Batch(
        features={
            "C3": torch.randn(count, channels, 8, 6, generator=generator) * strength,
            "C4": torch.randn(count, channels, 4, 3, generator=generator) * strength,
        },
        targets=[targets] * count,
    )


@settings(deadline=None, max_examples=25, derandomize=True)
@given(share=st.floats(0.01, 0.9), seed=st.integers(0, 2**40))
def test_dropout_takes_whole_channels_and_makes_up_for_them(
    painting: Any, share: float, seed: int
) -> None:
    batch = make_batch()
    after = painting.check_pure(partial(channel_dropout, share=share), batch, seed)
    dropped = []
    for level, maps in after.features.items():
        before = batch.features[level]
        gone = (maps == 0).flatten(2).all(dim=2)
        torch.testing.assert_close(maps[~gone], before[~gone] / (1 - share))
        dropped.append(gone)
    assert not torch.equal(dropped[0][0], dropped[0][1])  # each image its own
    assert not torch.equal(dropped[0], dropped[1])  # and each level
    rate = torch.stack(dropped).float().mean().item()
    # 2,400 draws: 4.5 standard deviations
    assert abs(rate - share) < 4.5 * (share * (1 - share) / 2400) ** 0.5
    assert after.targets is batch.targets


@settings(deadline=None, max_examples=25, derandomize=True)
@given(fine=st.floats(0.01, 2), coarse=st.floats(0.01, 2), seed=st.integers(0, 2**40))
def test_noise_is_in_proportion_to_each_channel(
    painting: Any, fine: float, coarse: float, seed: int
) -> None:
    batch = make_batch()
    step = partial(add_noise, relative={"C3": fine, "C4": coarse})
    after = painting.check_pure(step, batch, seed)
    for level, wanted in (("C3", fine), ("C4", coarse)):
        before = batch.features[level]
        noise = after.features[level] - before
        strength = before.square().mean(dim=(2, 3), keepdim=True).sqrt()
        standard = noise / (strength * wanted)
        assert abs(standard.mean().item()) < 4.5 / standard.numel() ** 0.5
        assert abs(standard.square().mean().item() - 1) < 4.5 * (2 / standard.numel()) ** 0.5
        # Gaussian: 95.45 % within two standard deviations, a uniform one would have all there
        within = (standard.abs() < 2).float().mean().item()
        assert abs(within - 0.9545) < 4.5 * (0.0434 / standard.numel()) ** 0.5
    assert after.targets is batch.targets


def test_a_silent_channel_stays_silent(painting: Any) -> None:
    batch = make_batch(count=1, channels=4)
    batch.features["C3"][0, 2] = 0
    after = add_noise(batch, painting.seeded(1), relative={"C3": 0.5, "C4": 0.0})
    silent = (after.features["C3"] == 0).flatten(2).all(dim=2)
    assert silent.tolist() == [[False, False, True, False]]
    assert torch.equal(after.features["C4"], batch.features["C4"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_noise_on_an_accelerator_is_a_function_of_the_seed(painting: Any) -> None:
    batch = make_batch()
    there = Batch(
        features={level: maps.cuda() for level, maps in batch.features.items()},
        targets=batch.targets,
    )
    for step in (
        partial(add_noise, relative={"C3": 0.5, "C4": 0.5}),
        partial(channel_dropout, share=0.5),
    ):
        one, same, other = (step(there, painting.seeded(seed)).features["C3"] for seed in (1, 1, 2))
        assert one.device == there.features["C3"].device
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert not torch.equal(one, there.features["C3"])

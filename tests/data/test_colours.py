"""Colours against torchvision's, against float64, and by what must stay the same."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

from cachedet.data.colours import MOST_BLUR, Colour, is_grey

RULE = settings(deadline=None, max_examples=60, derandomize=True)
UNIT = st.floats(0, 1, exclude_max=True)


def photograph(low: int = 60, high: int = 160) -> NDArray[np.uint8]:
    """Values so far from 0 and 255 that nothing is cut off."""
    return np.random.default_rng(3).integers(low, high, (24, 32, 3), dtype=np.uint8)


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = pixels @ np.array([0.299, 0.587, 0.114])
    return result


@pytest.mark.parametrize(
    ("colour", "oracle"),
    [
        (Colour(brightness=1.3), lambda image: functional.adjust_brightness(image, 1.3)),
        (Colour(contrast=0.7), lambda image: functional.adjust_contrast(image, 0.7)),
        (Colour(contrast=1.3), lambda image: functional.adjust_contrast(image, 1.3)),
        (Colour(saturation=0.5), lambda image: functional.adjust_saturation(image, 0.5)),
        (Colour(saturation=1.5), lambda image: functional.adjust_saturation(image, 1.5)),
        (Colour(saturation=0.0), lambda image: functional.rgb_to_grayscale(image, 3)),
    ],
)
def test_torchvision_changes_colours_alike(
    colour: Colour, oracle: Callable[[Tensor], Tensor]
) -> None:
    pixels = photograph()
    expected = oracle(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255) * 255
    found = torch.from_numpy(colour.apply(pixels)).permute(2, 0, 1).float()
    torch.testing.assert_close(found, expected, atol=0.8, rtol=0)  # it rounds its luma's weights


def test_hues_turn_and_keep_luma() -> None:
    pixels = photograph(90, 130)
    for turn in (-0.05, 0.05, 0.5):
        turned = Colour(hue=turn).apply(pixels)
        torch.testing.assert_close(
            torch.from_numpy(luma(turned)), torch.from_numpy(luma(pixels)), atol=0.6, rtol=0
        )
    red = np.full((2, 2, 3), (180, 100, 100), dtype=np.uint8)
    hues = [
        colorsys.rgb_to_hsv(*(Colour(hue=turn).apply(red)[0, 0] / 255))[0]
        for turn in (1 / 3, -1 / 3)
    ]
    assert sorted(round(hue, 1) for hue in hues) == [0.3, 0.7]  # green and blue


def test_the_defaults_change_nothing() -> None:
    pixels = photograph(0, 256)
    assert np.array_equal(Colour().apply(pixels), pixels)
    assert Colour.drawn([0.5] * 6) == Colour()


@RULE
@given(numbers=st.lists(UNIT, min_size=6, max_size=6), shade=st.integers(0, 255))
def test_every_draw_is_sound(numbers: list[float], shade: int) -> None:
    """Greys stay grey, the input is left alone, and float64 says the same."""
    colour = Colour.drawn(numbers)
    assert 0 <= colour.blur <= MOST_BLUR
    pixels = photograph(0, 256)
    before = pixels.copy()
    changed = colour.apply(pixels)
    assert np.array_equal(pixels, before)
    assert is_grey(colour.apply(np.full((5, 7, 3), shade, dtype=np.uint8)))
    if colour.blur == 0:
        grey = (1 - colour.contrast) * colour.brightness * luma(pixels).mean()
        exact = (pixels @ colour.matrix().T + grey).clip(0, 255)
        torch.testing.assert_close(
            torch.from_numpy(changed).double(), torch.from_numpy(exact), atol=0.51, rtol=0
        )


def test_blur_goes_with_the_size() -> None:
    """An edge is as soft, for its share of the view, in a view of twice the size."""
    softness = []
    for side in (200, 400):
        edge = np.zeros((side, side, 3), dtype=np.uint8)
        edge[:, side // 2 :] = 255
        row = Colour(blur=0.01).apply(edge)[side // 2, :, 0].astype(float)
        softness.append(((row > 25) & (row < 230)).sum() / side)
    assert softness[0] == pytest.approx(softness[1], abs=0.006)
    assert softness[0] > 0.015


def test_grey_images_are_known() -> None:
    assert is_grey(np.full((3, 3, 3), 7, dtype=np.uint8))
    assert not is_grey(photograph())

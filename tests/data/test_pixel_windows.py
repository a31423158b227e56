from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.data.backbone_input import resize
from cachedet.data.geometry import Geometry
from cachedet.data.pixel_windows import PixelWindows, parse_file_views
from cachedet.data.views import View, make_geometry, parse_views
from cachedet.errors import InputError


def windows_of(
    side: int, image_hw: tuple[int, int], *, image_size: int = 384
) -> tuple[Geometry, ...]:
    return PixelWindows(side=side).geometries(image_hw, image_size=image_size, pad_multiple=32)


@pytest.mark.parametrize(
    ("image_hw", "rows", "columns"),
    [
        ((640, 640), 1, 1),  # the base view
        ((640, 641), 1, 2),
        ((1152, 1152), 2, 2),  # 640 + 512
        ((1153, 1664), 3, 3),  # 640 + 2 x 512
        ((100, 1665), 1, 4),
        ((10_000, 10_000), 20, 20),  # (10,000 - 128) / 512 is 19.3
    ],
)
def test_how_many_windows(image_hw: tuple[int, int], rows: int, columns: int) -> None:
    windows = windows_of(640, image_hw)
    assert len({window.offset_yx[0] for window in windows}) == rows
    assert len({window.offset_yx[1] for window in windows}) == columns
    assert len(windows) == rows * columns


def test_windows_by_hand() -> None:
    """Of 640 pixels as 320: half the scale; the last ends with the image, the middle is between."""
    windows = windows_of(640, (500, 1400), image_size=320)
    assert [window.offset_yx for window in windows] == [(0, 0), (0, 190), (0, 380)]
    for window in windows:
        assert (window.scaled_hw, window.valid_hw) == ((250, 700), (250, 320))
        assert window.padded_hw == (256, 320)
        assert not window.flip
    assert windows[1].window_in_image() == (380, 0, 1020, 500)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    height=st.integers(1, 6000),
    width=st.integers(1, 6000),
    side=st.integers(64, 2000),
    image_size=st.sampled_from([96, 384, 1000]),
)
def test_windows_cover_the_image_and_overlap(
    height: int, width: int, side: int, image_size: int
) -> None:
    windows = windows_of(side, (height, width), image_size=image_size)
    pixel = max(1, side / image_size)  # of the view, in the image
    for axis in range(2):
        starts = sorted({window.offset_yx[axis] for window in windows})
        length = windows[0].valid_hw[axis]
        assert starts[0] == 0
        assert starts[-1] + length == windows[0].scaled_hw[axis]
        for before, after in itertools.pairwise(starts):
            assert (before + length - after) * side / image_size >= 0.2 * side - 2 * pixel
    if max(height, width) > side:
        for window in windows:
            x1, y1, x2, y2 = window.window_in_image()
            assert abs(x2 - x1 - min(side, width)) <= pixel
            assert abs(y2 - y1 - min(side, height)) <= pixel


def test_an_image_not_larger_than_a_window_is_the_base_view() -> None:
    (window,) = windows_of(640, (480, 640))
    assert window == make_geometry(
        View(family="base"), image_hw=(480, 640), image_id=5, image_size=384, pad_multiple=32
    )


@pytest.mark.parametrize("side", [100, 300, 450])
@pytest.mark.parametrize("reduction", [1, 2])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_windows_are_cut_out_with_what_the_filter_sees(
    side: int, reduction: int, interpolation: str
) -> None:
    """Enlarged and reduced, from all pixels or fewer: as from the whole image, within rounding."""
    rng = np.random.default_rng(side)
    pixels = rng.integers(0, 256, (640 // reduction, 960 // reduction, 3), dtype=np.uint8)
    for window in windows_of(side, (640, 960), image_size=160):
        of_part = resize(pixels, window, interpolation=interpolation)
        of_all = resize(pixels, replace(window, is_cut_out=False), interpolation=interpolation)
        assert of_part.shape == (*window.valid_hw, 3)
        assert np.abs(of_part.astype(int) - of_all).max() <= 2


def test_windows_are_named_beside_views() -> None:
    assert parse_file_views("base, tile=640px ,tile=2,tile=64px") == (
        parse_views("base,tile=2"), (PixelWindows(side=640), PixelWindows(side=64)),
    )  # fmt: skip
    assert parse_file_views("tile=8192px,") == ((), (PixelWindows(side=8192),))
    assert parse_file_views("hflip") == (parse_views("hflip"), ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tile=10px", "tile=10px: expected 64 to 8192 pixels of the image, as tile=640px"),
        ("base,tile=8193px", "tile=8193px: expected 64 to 8192 pixels"),
        ("tile=640px,tile=640px", "view once, got tile=640px more than once in 'tile=640px,tile="),
        ("tile=px", "tile=px: expected 2 to 8 tiles in a row"),
        ("tile=640", "tile=640: .* in predict, tile=640px for windows of 640 pixels"),
        ("tile=640px,bse", "unknown view 'bse'"),
        ("", "views must name each view once, got ''"),
    ],
)
def test_wrong_windows(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_file_views(text)


def test_views_of_a_store_are_no_windows_in_pixels() -> None:
    with pytest.raises(InputError, match="tile=640px: only predict cuts .*: name tile=<n>, as til"):
        parse_views("base,tile=640px")

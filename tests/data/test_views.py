from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.data.views import make_geometry, make_targets, parse_views, view_named
from cachedet.errors import InputError
from cachedet.structures import Annotations


def test_geometry_keeps_aspect_and_pads_to_the_multiple() -> None:
    geometry = make_geometry(
        view_named("base"), image_hw=(480, 640), image_id=7, image_size=384, pad_multiple=32
    )
    assert geometry.valid_hw == (288, 384)
    assert geometry.padded_hw == (288, 384)
    odd = make_geometry(
        view_named("base"), image_hw=(333, 500), image_id=7, image_size=384, pad_multiple=32
    )
    assert odd.valid_hw == (256, 384)
    assert make_geometry(
        view_named("base"), image_hw=(1, 5000), image_id=7, image_size=384, pad_multiple=32
    ).valid_hw == (1, 384)


def test_hflip_by_hand() -> None:
    geometry = make_geometry(
        view_named("hflip"), image_hw=(100, 200), image_id=7, image_size=100, pad_multiple=32
    )
    mapped = geometry.boxes_to_view(np.array([[20.0, 10.0, 60.0, 30.0]]))
    torch.testing.assert_close(mapped, torch.tensor([[70.0, 5.0, 90.0, 15.0]]))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    height=st.integers(20, 900),
    width=st.integers(20, 900),
    flip=st.booleans(),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_boxes_return_to_the_image(
    height: int, width: int, flip: bool, corners: list[float]
) -> None:
    view = view_named("hflip" if flip else "base")
    geometry = make_geometry(
        view, image_hw=(height, width), image_id=7, image_size=256, pad_multiple=32
    )
    x1, x2 = sorted(corners[:2])
    y1, y2 = sorted(corners[2:])
    box = np.array([[x1 * width, y1 * height, x2 * width, y2 * height]])
    back = geometry.boxes_to_image(geometry.boxes_to_view(box))
    torch.testing.assert_close(back, torch.from_numpy(box).float(), rtol=1e-4, atol=2e-3)


def test_targets_are_clipped_and_empty_ones_left_out(
    annotations_of: Callable[..., Annotations],
) -> None:
    annotations = annotations_of(
        [(100, 100)], [[[-20, 10, 30, 40, 1, 0], [99.99, 0, 180, 50, 0, 0], [0, 0, 5, 5, 2, 1]]]
    )
    geometry = make_geometry(
        view_named("base"), image_hw=(100, 100), image_id=7, image_size=100, pad_multiple=32
    )
    targets = make_targets(annotations, 0, geometry)
    torch.testing.assert_close(targets.boxes[0], torch.tensor([0.0, 10.0, 30.0, 40.0]))
    assert targets.labels.tolist() == [1, 0, 2]
    assert targets.crowd.tolist() == [False, False, True]
    beyond = annotations_of([(100, 100)], [[[100.0, 0, 180, 50, 0, 0]]])
    assert len(make_targets(beyond, 0, geometry).boxes) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base,hflp", "unknown view 'hflp'; nearest: 'hflip'; known: base, hflip"),
        ("base,base", "each view once"),
        ("", "each view once"),
    ],
)
def test_wrong_views(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_views(text)

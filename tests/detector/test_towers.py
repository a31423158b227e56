from __future__ import annotations

import pytest
import torch

from cachedet.detector.layers import LayerStyle
from cachedet.detector.towers import Tower, per_anchor


def make_tower(*, separable: bool = False, **changes: object) -> Tower:
    values = {"in_channels": 4, "channels": 8, "num_levels": 3, "num_convs": 2}
    style = LayerStyle(norm="batch", activation="relu", separable=separable)
    return Tower(style=style, **(values | changes))  # type: ignore[arg-type]


def test_levels_share_convolutions_but_not_norms() -> None:
    tower = make_tower()
    assert len(tower.convs) == 2
    assert [len(norms) for norms in tower.norms] == [2, 2, 2]  # type: ignore[arg-type]
    maps = torch.randn(2, 4, 6, 5)
    before = tower(maps, 0)
    tower(maps + 3, 1)  # another level's statistics
    torch.testing.assert_close(tower(maps, 0), before, rtol=0, atol=0)
    shared = make_tower(norm_per_level=False)
    assert len(shared.norms) == 1
    assert torch.equal(shared(maps, 0), shared(maps, 2))


@pytest.mark.parametrize("separable", [False, True])
def test_initial_weights(separable: bool) -> None:
    torch.manual_seed(0)
    wide = {"in_channels": 64, "channels": 64, "num_convs": 1, "separable": separable}
    he = [(2 / 9) ** 0.5, (2 / 64) ** 0.5] if separable else [(2 / 576) ** 0.5]
    for tower, expected in (
        (make_tower(**wide), he if separable else [0.01]),
        (make_tower(**wide, init_std=None), he),
    ):
        kernels = [p for p in tower.convs.parameters() if p.ndim == 4]
        assert [k.detach().std().item() for k in kernels] == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("separable", [False, True])
def test_a_tower_keeps_the_size_of_what_comes_in(separable: bool) -> None:
    """Where a norm's epsilon outweighs the variance, values shrink with every convolution."""
    torch.manual_seed(0)
    tower = make_tower(in_channels=64, channels=64, num_convs=4, separable=separable)
    last = tower(torch.randn(2, 64, 16, 16), 0)
    assert 0.3 < last.std().item() < 1.5


def test_no_convolutions_pass_the_maps_on() -> None:
    tower = make_tower(num_convs=0)
    maps = torch.randn(1, 4, 3, 3)
    assert tower.out_channels == 4
    assert tower(maps, 1) is maps


def test_anchor_order_of_predictors() -> None:
    """Cells row by row, anchors within a cell, values within an anchor."""
    maps = torch.arange(2 * 3 * 2 * 2.0).view(1, 6, 2, 2)  # A = 2 anchors of 3 values
    rows = per_anchor(maps, 3)
    assert rows.shape == (1, 8, 3)
    for y in range(2):
        for x in range(2):
            for a in range(2):
                row = rows[0, (y * 2 + x) * 2 + a]
                assert torch.equal(row, maps[0, a * 3 : a * 3 + 3, y, x])
    last = maps.contiguous(memory_format=torch.channels_last)
    assert torch.equal(per_anchor(last, 3), rows)

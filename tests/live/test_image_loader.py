"""Batches from image files: which draw of a view an epoch shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.data.geometry import Geometry
from cachedet.data.views import MOST_DRAWS, make_geometry, make_targets, parse_views, view_named
from cachedet.detector.end_to_end import PIXELS
from cachedet.live.image_loader import ImageLoader, fresh_view
from cachedet.live.modes import inputs_of
from cachedet.loading.loader import FeatureLoader
from cachedet.store.reader import FeatureStore


@pytest.mark.parametrize(
    ("name", "epoch", "expected"),
    [
        ("jitter-s0", 0, "jitter-s63"),
        ("jitter-s0", 1, "jitter-s62"),
        ("jitter-s5", 1, "jitter-s62"),  # all draws of one recipe are one view here
        ("jitter-0.5-1.5-s1", 63, "jitter-0.5-1.5-s0"),
        ("jitter-0.5-1.5-s1", 64, "jitter-0.5-1.5-s63"),
        ("colour-s0", 1, "colour-s62"),
    ],
)
def test_jitter_is_drawn_anew_from_the_last_draw_on(name: str, epoch: int, expected: str) -> None:
    assert fresh_view(name, epoch) == expected


def test_draws_repeat_after_all_of_them_only() -> None:
    assert len({fresh_view("jitter-s0", epoch) for epoch in range(MOST_DRAWS)}) == MOST_DRAWS


def test_a_store_of_eight_draws_shares_none_in_56_epochs() -> None:
    held = {view.name for view in parse_views("jitter=8:0.5-1.5")}
    drawn = {fresh_view("jitter-0.5-1.5-s0", epoch) for epoch in range(56)}
    assert not held & drawn
    assert fresh_view("jitter-0.5-1.5-s0", 56) in held


@pytest.mark.parametrize("name", ["base", "hflip", "scale-0.5", "crop-k3"])
def test_other_views_stay_what_they_are(name: str) -> None:
    assert {fresh_view(name, epoch) for epoch in (0, 1, 70)} == {name}


@pytest.fixture
def store(tiny: Any) -> FeatureStore:
    return FeatureStore.open(tiny.train)


def loader_of(store: FeatureStore, images: Path, view: str, *, fresh: bool = True) -> ImageLoader:
    """Its plans are those of the base view, whose buckets jitter shares."""
    plans = FeatureLoader(store, views=["base"], levels=("C5",), batch_size=2, seed=0)
    return ImageLoader(
        plans=plans,
        views=(view,),
        store=store,
        inputs=inputs_of(store, images),
        device=torch.device("cpu"),
        fresh=fresh,
    )


def geometry_of(store: FeatureStore, row: int, view: str) -> Geometry:
    """Also of a view that the store does not hold."""
    return make_geometry(
        view_named(view),
        image_hw=store.annotations.size_of(row),
        image_id=int(store.annotations.image_ids[row]),
        image_size=store.manifest.image_size,
        pad_multiple=store.manifest.spec.pad_multiple,
    )


@pytest.mark.parametrize(
    ("view", "fresh", "shown"),
    [
        ("jitter-0.5-1.5-s0", True, ("jitter-0.5-1.5-s63", "jitter-0.5-1.5-s62")),
        ("jitter-0.5-1.5-s0", False, ("jitter-0.5-1.5-s0", "jitter-0.5-1.5-s0")),
        ("hflip", True, ("hflip", "hflip")),
    ],
)
def test_each_epoch_shows_its_own_draw(
    tiny: Any, store: FeatureStore, view: str, fresh: bool, shown: tuple[str, str]
) -> None:
    """Pixels and boxes alike."""
    loader = loader_of(store, tiny.paths.images, view, fresh=fresh)
    inputs = inputs_of(store, tiny.paths.images)
    in_turn = list(loader.epoch(0, until=len(shown)))
    for epoch, name in enumerate(shown):
        batch = in_turn[epoch * len(loader.plan(0))]
        rows = [int(row) for _, row in loader.plan(epoch)[0]]
        expected = torch.stack([inputs.load(row, name) for row in rows])
        assert torch.equal(batch.features[PIXELS], expected)
        for row, targets in zip(rows, batch.targets, strict=True):
            of_view = make_targets(store.annotations, row, geometry_of(store, row, name))
            assert targets.size_hw == of_view.size_hw
            assert torch.equal(targets.boxes, of_view.boxes)

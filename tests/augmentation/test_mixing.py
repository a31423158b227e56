from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cachedet.augmentation.mixing import copy_paste, mosaic
from cachedet.augmentation.regions import Grid
from cachedet.structures import Batch, TargetMasks, Targets

STEPS: dict[str, Callable[..., Any]] = {
    "mosaic": lambda grid, chance: partial(mosaic, grid=grid, chance=chance),
    "copy_paste": lambda grid, chance: partial(copy_paste, grid=grid, chance=chance),
}


@pytest.mark.parametrize("name", STEPS)
@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 2**40), chance=st.sampled_from([0.5, 1.0]))
def test_boxes_follow_exactly_and_the_input_stays(
    painting: Any, name: str, data: st.DataObject, seed: int, chance: float
) -> None:
    painting.check_step(STEPS[name], data, seed, chance, hides=name == "copy_paste")


@pytest.mark.parametrize("name", STEPS)
def test_each_image_is_drawn_with_its_chance(painting: Any, name: str) -> None:
    # A drawn translation, window or paste may also leave an image as it was.
    assert 0.2 < painting.share_changed(STEPS[name], 0.3) < 0.36
    assert painting.share_changed(STEPS[name], 0.0) == 0


@settings(deadline=None, max_examples=120, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 2**40))
def test_mosaic_has_four_windows_around_one_cross_point(
    painting: Any, data: st.DataObject, seed: int
) -> None:
    scene = data.draw(painting.scenes(least_images=2))
    after = mosaic(scene.batch, painting.seeded(seed), grid=Grid(scene.spec), chance=1.0)
    level = scene.spec.levels[-1]
    scale = scene.spec.pad_multiple // level.stride
    rows, columns = (side // scale for side in after.features[level.name].shape[2:])
    if min(rows, columns) < 2:
        torch.testing.assert_close(after.features, scene.batch.features, rtol=0, atol=0)
        return
    for image, targets in enumerate(after.targets):
        maps = after.features[level.name][image]
        assert targets.size_hw == (maps.shape[1] * level.stride, maps.shape[2] * level.stride)
        found = []
        for y in range(scale, maps.shape[1], scale):
            for x in range(scale, maps.shape[2], scale):
                found += [(y, x)] if _is_cross_point(maps, y, x) else []
        quarters = [
            (y, x)
            for y, x in found
            if min(y, maps.shape[1] - y) * 4 >= maps.shape[1]
            and min(x, maps.shape[2] - x) * 4 >= maps.shape[2]
        ]
        assert quarters
        used = set(maps[0].unique().tolist())
        assert image + 1 in used
        if len(after.targets) >= 4:
            assert len(used) == 4


def _is_cross_point(maps: Tensor, y: int, x: int) -> bool:
    """Whether each of the four quadrants is a window of one image."""
    for part in (maps[:, :y, :x], maps[:, :y, x:], maps[:, y:, :x], maps[:, y:, x:]):
        offset = torch.arange(part.shape[1])[:, None], torch.arange(part.shape[2])[None]
        expected = torch.stack(
            [
                part[0, 0, 0].expand(part.shape[1:]),
                (part[1, 0, 0] + offset[0]).expand(part.shape[1:]),
                (part[2, 0, 0] + offset[1]).expand(part.shape[1:]),
            ]
        )
        if not torch.equal(part, expected):
            return False
    return True


@settings(deadline=None, max_examples=120, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 2**40))
def test_copy_paste_adds_one_object_with_its_cells(
    painting: Any, data: st.DataObject, seed: int
) -> None:
    scene = data.draw(painting.scenes(least_images=2))
    after = copy_paste(scene.batch, painting.seeded(seed), grid=Grid(scene.spec), chance=1.0)
    level, cell = scene.spec.levels[-1], scene.spec.pad_multiple
    for image, (old, new) in enumerate(zip(scene.batch.targets, after.targets, strict=True)):
        maps, before = (b.features[level.name][image] for b in (after, scene.batch))
        pasted = maps[0] != image + 1
        assert torch.equal(maps[:, ~pasted], before[:, ~pasted])
        assert new.size_hw == old.size_hw
        foreign = [int(label) for label in new.labels if scene.origin[int(label)][0] != image]
        assert bool(foreign) == bool(pasted.any())
        if not foreign:
            continue
        x1, y1, x2, y2 = painting.bounds(pasted, level.stride)
        assert bool(pasted[y1 // level.stride : y2 // level.stride].any())
        assert int(pasted.sum()) * level.stride**2 == (x2 - x1) * (y2 - y1)
        assert (y2 - y1) * (x2 - x1) <= 0.5 * maps[0].numel() * level.stride**2
        assert y2 <= new.size_hw[0]
        assert x2 <= new.size_hw[1]
        assert not any(edge % cell for edge in (x1, y1, x2, y2))
        wholes = [scene.origin[label][1] for label in foreign if not scene.origin[label][2]]
        sides = [(_around(b[0], b[2], cell), _around(b[1], b[3], cell)) for b in wholes]
        assert (x2 - x1, y2 - y1) in sides


def _around(start: int, end: int, cell: int) -> int:
    return -(-end // cell) * cell - start // cell * cell


@pytest.mark.parametrize("step", [mosaic, copy_paste])
def test_a_batch_of_one_image_has_nothing_to_mix(painting: Any, step: Callable[..., Batch]) -> None:
    grid, batch = painting.one_level_batch([[[0, 0, 20, 20]]])
    after = step(batch, painting.seeded(), grid=grid, chance=1.0)
    assert torch.equal(after.features["S10"], batch.features["S10"])
    assert torch.equal(after.targets[0].boxes, batch.targets[0].boxes)


def test_an_object_larger_than_half_a_map_is_not_pasted(painting: Any) -> None:
    grid, batch = painting.one_level_batch([[], [[0, 0, 80, 50]]])
    after = copy_paste(batch, painting.seeded(), grid=grid, chance=1.0)
    assert torch.equal(after.features["S10"], batch.features["S10"])
    assert len(after.targets[0].boxes) == 0


def test_an_object_lands_everywhere_and_boxes_between_pixels_keep_their_place(
    painting: Any,
) -> None:
    grid, batch = painting.one_level_batch([[], [[11.5, 22.25, 38.75, 29]]])
    corners = set()
    for seed in range(150):
        after = copy_paste(batch, painting.seeded(seed), grid=grid, chance=1.0)
        x1, y1, x2, y2 = after.targets[0].boxes[0].tolist()
        assert (x1 % 10, y1 % 10, x2 - x1, y2 - y1) == (1.5, 2.25, 27.25, 6.75)
        corners.add((x1 // 10, y1 // 10))
    assert len(corners) > 0.8 * 6 * 8


def test_a_mosaic_of_small_valid_parts_shows_them(painting: Any) -> None:
    """Windows start inside the valid part, so that none shows padding alone."""
    spec = painting.make_spec(1, 4)
    features = painting.paint(spec, (32, 32), 4)
    targets = [
        Targets(image_id=n, size_hw=(9, 5), boxes=torch.tensor([[0.0, 0, 5, 9]]),
                labels=torch.tensor([n]), crowd=torch.tensor([False]))
        for n in range(4)
    ]  # fmt: skip
    for seed in range(30):
        after = mosaic(
            Batch(features=features, targets=targets),
            painting.seeded(seed),
            grid=Grid(spec),
            chance=1.0,
        )
        assert all(sorted(own.labels.tolist()) == [0, 1, 2, 3] for own in after.targets)


@pytest.mark.parametrize("name", STEPS)
def test_mixed_images_have_no_masks(painting: Any, name: str) -> None:
    grid, batch = painting.one_level_batch([[[0, 0, 20, 20]]] * 40)
    masks = TargetMasks(codes=(b"",), image_hw=(80, 80), scale_xy=(1, 1), origin_xy=(0, 0))
    batch = replace(batch, targets=[replace(own, masks=masks) for own in batch.targets])
    after = STEPS[name](grid, 0.5)(batch, painting.seeded())
    mixed = [own.masks is None for own in after.targets]
    assert 10 < sum(mixed) < 30
    for own, old, is_mixed in zip(after.targets, batch.targets, mixed, strict=True):
        assert is_mixed or own is old


def test_what_is_pasted_is_of_the_batch_as_it_came_in(painting: Any) -> None:
    """The first image's object is whole in the second, whatever was laid over it before."""
    grid, batch = painting.one_level_batch([[[20, 20, 60, 60]], [[20, 20, 60, 60]]])
    for seed in range(10):
        after = copy_paste(batch, painting.seeded(seed), grid=grid, chance=1.0)
        for image, maps in enumerate(after.features["S10"]):
            x1, y1, x2, y2 = (after.targets[image].boxes[-1] / 10).int().tolist()
            original = batch.features["S10"][1 - image][:, 2:6, 2:6]
            assert torch.equal(maps[:, y1:y2, x1:x2], original)

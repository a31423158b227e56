from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.augmentation.regions import Grid
from cachedet.augmentation.steps import crop, flip, make_augment, translate
from cachedet.config.run import AugmentConfig, make_train_config
from cachedet.data.masks import encode_bitmap
from cachedet.detector.mask_head import crop_masks
from cachedet.errors import ConfigError
from cachedet.loading.residency import StreamedFeatures
from cachedet.loading.targets import targets_of
from cachedet.store.reader import FeatureStore
from cachedet.structures import Batch, FeatureSpec, LevelSpec, TargetMasks

STEPS: dict[str, Callable[..., Any]] = {
    "translate": lambda grid, probability: partial(
        translate, grid=grid, probability=probability, most=0.5
    ),
    "crop": lambda grid, probability: partial(crop, grid=grid, probability=probability, least=0.3),
    "flip": lambda grid, probability: partial(flip, grid=grid, probability=probability),
}


@pytest.mark.parametrize("name", STEPS)
@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 2**40), probability=st.sampled_from([0.5, 1.0]))
def test_boxes_follow_exactly_and_the_input_stays(
    painting: Any, name: str, data: st.DataObject, seed: int, probability: float
) -> None:
    painting.check_step(STEPS[name], data, seed, probability, writes=name == "flip")


@pytest.mark.parametrize("name", STEPS)
def test_each_image_is_drawn_with_its_probability(painting: Any, name: str) -> None:
    # A drawn translation or window may also leave an image as it was.
    assert 0.2 < painting.share_changed(STEPS[name], 0.3) < 0.36
    assert painting.share_changed(STEPS[name], 0.0) == 0


@pytest.mark.parametrize("name", STEPS)
def test_tokens_stay_where_a_map_is_moved(painting: Any, name: str) -> None:
    grid, batch = painting.one_level_batch([[[0, 0, 20, 20]]] * 2)
    tokens = LevelSpec(name="S10_prefix", channels=3, stride=10, tokens=2)
    with_tokens = Grid(FeatureSpec((*grid.spec, tokens)))
    prefix = torch.randn(2, 3, 1, 2)
    given = replace(batch, features={**batch.features, "S10_prefix": prefix.clone()})
    moved = STEPS[name](grid, 1.0)(painting.with_own_maps(batch), painting.seeded())
    after = STEPS[name](with_tokens, 1.0)(painting.with_own_maps(given), painting.seeded())
    assert list(after.features) == ["S10", "S10_prefix"]
    torch.testing.assert_close(after.features["S10"], moved.features["S10"], rtol=0, atol=0)
    torch.testing.assert_close(after.features["S10_prefix"], prefix, rtol=0, atol=0)


@settings(deadline=None, max_examples=120, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 2**40))
def test_translate_is_one_shift_on_all_levels(
    painting: Any, data: st.DataObject, seed: int
) -> None:
    scene = data.draw(painting.scenes())
    after = translate(
        scene.batch, painting.seeded(seed), grid=Grid(scene.spec), probability=1.0, most=0.5
    )
    cell = scene.spec.pad_multiple
    for image, targets in enumerate(after.targets):
        shifts = set()
        for level in scene.spec:
            maps = after.features[level.name][image]
            filled = maps[0] > 0
            assert bool((maps[:, ~filled] == 0).all())
            rows = torch.arange(1.0, maps.shape[1] + 1)[:, None] - maps[1]
            columns = torch.arange(1.0, maps.shape[2] + 1) - maps[2]
            assert rows[filled].unique().numel() == columns[filled].unique().numel() == 1
            down, right = int(rows[filled][0]), int(columns[filled][0])
            assert int(filled.sum()) == (maps.shape[1] - abs(down)) * (maps.shape[2] - abs(right))
            shifts.add((down * level.stride, right * level.stride))
        assert len(shifts) == 1
        shift = shifts.pop()
        padded = [side * level.stride for side in maps.shape[1:]]
        before = scene.batch.targets[image].size_hw
        moved = zip(before, shift, padded, strict=True)
        assert targets.size_hw == tuple(min(side + by, most) for side, by, most in moved)
        for side, by in zip(padded, shift, strict=True):
            assert by % cell == 0
            assert abs(by) <= max(cell, side / 2)


@settings(deadline=None, max_examples=120, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 2**40))
def test_crop_cuts_one_size_out_of_the_valid_part(
    painting: Any, data: st.DataObject, seed: int
) -> None:
    scene = data.draw(painting.scenes())
    after = crop(
        scene.batch, painting.seeded(seed), grid=Grid(scene.spec), probability=1.0, least=0.3
    )
    cell, level = scene.spec.pad_multiple, scene.spec.levels[-1]
    for image, (old, new) in enumerate(zip(scene.batch.targets, after.targets, strict=True)):
        before, maps = scene.batch.features[level.name], after.features[level.name]
        top, left = (int(maps[image, axis, 0, 0]) - 1 for axis in (1, 2))
        window = before[image, :, top : top + maps.shape[2], left : left + maps.shape[3]]
        assert torch.equal(maps[image], window)
        for axis, start in enumerate((top, left)):
            start, side = start * level.stride, maps.shape[2 + axis] * level.stride
            assert start % cell == side % cell == 0
            assert side >= 0.3 * before.shape[2 + axis] * level.stride
            assert new.size_hw[axis] == min(side, old.size_hw[axis] - start)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 2**40))
def test_flip_twice_is_nothing_but_padding_that_counts(
    painting: Any, data: st.DataObject, seed: int
) -> None:
    scene = data.draw(painting.scenes())
    step = partial(flip, grid=Grid(scene.spec), probability=1.0)
    once = step(painting.with_own_maps(scene.batch), painting.seeded(seed))
    twice = step(once, painting.seeded(seed))
    torch.testing.assert_close(twice.features, scene.batch.features, rtol=0, atol=0)
    width = once.features[scene.spec.names[0]].shape[3] * scene.spec.levels[0].stride
    for old, mirrored, new in zip(scene.batch.targets, once.targets, twice.targets, strict=True):
        assert torch.equal(new.boxes, old.boxes)
        assert new.size_hw == mirrored.size_hw == (old.size_hw[0], width)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("mirrored", [False, True])
def test_masks_follow(painting: Any, name: str, mirrored: bool) -> None:
    """What the mask head would learn under a box is what it would have learnt before."""
    grid, batch = painting.one_level_batch([[[12, 21, 36, 50], [0, 0, 8, 9], [30, 10, 75, 60]]])
    bitmaps = torch.rand(3, 160, 120, generator=torch.Generator().manual_seed(1)) < 0.5
    masks = TargetMasks(
        codes=tuple(encode_bitmap(bitmap.numpy()) for bitmap in bitmaps),
        image_hw=(160, 120),
        scale_xy=(-1.5 if mirrored else 1.5, 2.0),
        origin_xy=(120.0 if mirrored else 0.0, 0.0),
    )
    old = replace(batch.targets[0], masks=masks)
    whole = 0
    for seed in range(20):
        after = STEPS[name](grid, 1.0)(replace(batch, targets=[old]), painting.seeded(seed))
        new = after.targets[0]
        assert len(new.masks.codes) == len(new.boxes)
        for index, (label, box) in enumerate(zip(new.labels, new.boxes, strict=True)):
            before = old.boxes[label]
            if not torch.equal(box[2:] - box[:2], before[2:] - before[:2]):
                continue  # clipped: the same cells do not lie on the same grid any more
            learnt = crop_masks(new, box[None], torch.tensor([index]), side=14)
            expected = crop_masks(old, before[None], label[None], side=14)
            assert 0.2 < float(expected.mean()) < 0.8
            assert torch.equal(learnt, expected.flip(2) if name == "flip" else expected)
            whole += 1
    assert whole >= 10


ALL = AugmentConfig(translate=0.5, crop=0.5, flip=0.5)


def test_all_off_is_the_default_and_nothing(painting: Any) -> None:
    assert make_train_config({}, where="x").augment == AugmentConfig()
    assert make_augment(AugmentConfig(), spec=painting.make_spec(8, 16)) is None


@pytest.mark.parametrize("key", STEPS)
def test_each_key_switches_one_step_on(painting: Any, key: str) -> None:
    """Alone at full strength a step changes the maps."""
    spec = painting.make_spec(8, 16)
    augment = make_augment(AugmentConfig.model_validate({key: 1.0}), spec=spec)
    assert augment is not None
    _, batch = painting.one_level_batch([[[0, 0, 20, 20]]] * 3)
    maps = painting.paint(spec, (96, 128), 3)
    batch = type(batch)(features=maps, targets=batch.targets)
    changed = [
        not augment(painting.with_own_maps(batch), painting.seeded(seed))
        .features["S8"]
        .equal(maps["S8"])
        for seed in range(5)
    ]
    assert any(changed)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 2**40))
def test_all_steps_together(painting: Any, data: st.DataObject, seed: int) -> None:
    """A pure function of batch and generator, and boxes stay inside."""
    scene = data.draw(painting.scenes())
    augment = make_augment(ALL, spec=scene.spec)
    after = painting.check_pure(augment, scene.batch, seed, writes=True)
    painting.check_shapes(scene, after)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 2**40))
def test_boxes_follow_through_several_steps(painting: Any, data: st.DataObject, seed: int) -> None:
    """A share of a share is what is left in the end."""
    scene = data.draw(painting.scenes())
    config = AugmentConfig(translate=1, crop=1, crop_to=0.5, flip=1)
    augment = make_augment(config, spec=scene.spec)
    assert augment is not None
    after = augment(scene.batch, painting.seeded(seed))
    painting.check_shapes(scene, after)
    painting.check_boxes(scene, after, check_crowd=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flipp": 1}, "unknown key 'augment.flipp'; nearest: 'flip'"),
        ({"flip": 1.5}, "augment.flip: expected at most 1, got 1.5"),
        ({"crop_to": 0}, "augment.crop_to: expected more than 0, got 0"),
        ({"translate_by": 0}, "augment.translate_by: expected more than 0, got 0"),
    ],
)
def test_values_out_of_range(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_train_config({"augment": values}, where="x")


def test_on_a_store(tiny: Any, painting: Any) -> None:
    """Maps of a real backbone, a level left out, every step on."""
    store = FeatureStore.open(tiny.train)
    rows = next(iter(store.buckets("base").values())).tolist()[:4]
    source = StreamedFeatures(store, levels=("C3", "C4"), device=torch.device("cpu"))
    batch = Batch(
        features=source.read([(row, "base") for row in rows]),
        targets=[targets_of(store, row, "base") for row in rows],
    )
    augment = make_augment(ALL, spec=store.manifest.spec)
    assert augment is not None
    for seed in range(10):
        after = augment(batch, painting.seeded(seed))
        assert list(after.features) == ["C3", "C4"]
        assert after.image_ids == batch.image_ids
        assert all(bool(torch.isfinite(maps).all()) for maps in after.features.values())

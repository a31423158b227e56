from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.augmentation.steps import make_augment
from cachedet.config.run import AugmentConfig, make_train_config
from cachedet.errors import ConfigError
from cachedet.loading.residency import StreamedFeatures
from cachedet.loading.targets import targets_of
from cachedet.store.format.commits import Quality
from cachedet.store.reader import FeatureStore
from cachedet.structures import Batch

LOSSY = {
    "S8": Quality(values=10, signal=400.0, noise=4.0, saturated=0),
    "S16": Quality(values=10, signal=100.0, noise=4.0, saturated=0),
    "S32": Quality(values=10, signal=0.0, noise=0.0, saturated=0),
}
ALL = {
    "mosaic": 0.5,
    "copy_paste": 0.5,
    "translate": 0.5,
    "crop": 0.5,
    "flip": 0.5,
    "channel_dropout": 0.1,
    "noise": 1.0,
}


def test_all_off_is_the_default_and_nothing(painting: Any) -> None:
    assert make_train_config({}, where="x").augment == AugmentConfig()
    spec = painting.make_spec(8, 16)
    assert make_augment(AugmentConfig(), spec=spec, quality={}, trains_masks=True) is None


@pytest.mark.parametrize("key", ALL)
def test_each_key_switches_one_step_on(painting: Any, key: str) -> None:
    """Alone at full strength a step changes the maps."""
    spec = painting.make_spec(8, 16)
    strength = 0.5 if key == "channel_dropout" else 1.0
    config = AugmentConfig.model_validate({key: strength})
    augment = make_augment(config, spec=spec, quality=LOSSY, trains_masks=False)
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
    quality = dict.fromkeys(scene.spec.names, LOSSY["S8"])
    config = AugmentConfig.model_validate(ALL)
    augment = make_augment(config, spec=scene.spec, quality=quality, trains_masks=False)
    after = painting.check_pure(augment, scene.batch, seed, writes=True)
    painting.check_shapes(scene, after)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 2**40))
def test_boxes_follow_through_several_steps(painting: Any, data: st.DataObject, seed: int) -> None:
    """Without mixing each label occurs once, and a share of a share is what is left in the end."""
    scene = data.draw(painting.scenes())
    config = AugmentConfig(translate=1, crop=1, crop_to=0.5, flip=1)
    augment = make_augment(config, spec=scene.spec, quality={}, trains_masks=True)
    assert augment is not None
    after = augment(scene.batch, painting.seeded(seed))
    painting.check_shapes(scene, after)
    painting.check_boxes(scene, after, check_crowd=False)


def test_noise_is_as_strong_as_the_codec_erred(painting: Any) -> None:
    """Signal-to-noise of S8 is 100, of S16 25: at twice the error a fifth and 0.4."""
    spec = painting.make_spec(8, 16, 32)
    _, batch = painting.one_level_batch([[]])
    maps = {
        name: torch.randn(1, 20, 32 // side, 32 // side)
        for name, side in zip(LOSSY, (1, 2, 4), strict=True)
    }
    batch = type(batch)(features=maps, targets=batch.targets)
    augment = make_augment(AugmentConfig(noise=2), spec=spec, quality=LOSSY, trains_masks=False)
    assert augment is not None
    after = augment(batch, painting.seeded())
    for name, expected in zip(LOSSY, (0.2, 0.4, 0.0), strict=True):
        noise = after.features[name] - maps[name]
        found = float((noise.square().sum() / maps[name].square().sum()).sqrt())
        assert found == pytest.approx(expected, rel=0.05)


def test_a_lossless_codec_has_no_noise_to_add(painting: Any) -> None:
    lossless = {"S8": Quality(values=10, signal=4.0, noise=0.0, saturated=0)}
    with pytest.raises(ConfigError, match="augment.noise is 1.5 times the error of the store's"):
        make_augment(
            AugmentConfig(noise=1.5),
            spec=painting.make_spec(8),
            quality=lossless,
            trains_masks=False,
        )


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"mosaic": 0.1}, "augment.mosaic"),
        ({"copy_paste": 0.1, "mosaic": 1}, "augment.mosaic and augment.copy_paste"),
    ],
)
def test_masks_do_not_survive_mixing(painting: Any, values: dict[str, float], named: str) -> None:
    config = AugmentConfig.model_validate(values)
    with pytest.raises(ConfigError, match=f"learns masks, which do not survive {named} .the masks"):
        make_augment(config, spec=painting.make_spec(8), quality={}, trains_masks=True)
    assert make_augment(config, spec=painting.make_spec(8), quality={}, trains_masks=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mosaik": 1}, "unknown key 'augment.mosaik'; nearest: 'mosaic'"),
        ({"flip": 1.5}, "augment.flip: Input should be less than or equal to 1, got 1.5"),
        ({"channel_dropout": 1.0}, "augment.channel_dropout: Input should be less than 1, got 1.0"),
        ({"crop_to": 0}, "augment.crop_to: Input should be greater than 0, got 0"),
        ({"translate_by": 0}, "augment.translate_by: Input should be greater than 0, got 0"),
        ({"noise": -1}, "augment.noise: Input should be greater than or equal to 0, got -1"),
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
    quality = dict.fromkeys(store.manifest.spec.names, LOSSY["S8"])
    augment = make_augment(
        AugmentConfig.model_validate(ALL),
        spec=store.manifest.spec,
        quality=quality,
        trains_masks=False,
    )
    assert augment is not None
    for seed in range(10):
        after = augment(batch, painting.seeded(seed))
        assert list(after.features) == ["C3", "C4"]
        assert after.image_ids == batch.image_ids
        assert all(bool(torch.isfinite(maps).all()) for maps in after.features.values())

"""Feature-space augmentation: which steps a run takes, in which order. See docs/augmentation.md.

Images are mixed first, while all maps have one size and objects are whole; then moved; values are
changed last, so that the noise is as strong as the values it falls on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from cachedet.augmentation.draws import RandomDraws
from cachedet.augmentation.mixing import copy_paste, mosaic
from cachedet.augmentation.noise import add_noise, channel_dropout
from cachedet.augmentation.regions import Grid
from cachedet.augmentation.spatial import crop, flip, translate
from cachedet.config.run import AugmentConfig
from cachedet.errors import ConfigError
from cachedet.store.format.commits import Quality
from cachedet.structures import Batch, FeatureSpec, LevelSpec

Augment = Callable[[Batch, RandomDraws], Batch]
"""A batch from one and all that is random; targets stay as they were.

May write on the maps it is given: fresh memory for large ones takes five times as long.
"""


def make_augment(
    config: AugmentConfig,
    *,
    spec: FeatureSpec,
    quality: Mapping[str, Quality],
    trains_masks: bool,
) -> Augment | None:
    """All steps the config switches on, or None where it switches on none.

    Args:
        config: the section `augment` of a run.
        spec: all levels of the store, also those the detector leaves out.
        quality: what the codec did to the store's values, by level (`FeatureStore.quality`).
        trains_masks: whether the detector has a mask head.

    Raises ConfigError: masks do not survive a step, or noise of a codec that has no error.
    """
    if trains_masks:
        _refuse_mixing(config)
    steps = _moving_steps(config, Grid(spec))
    if config.channel_dropout:
        steps.append(partial(channel_dropout, share=config.channel_dropout))
    if config.noise:
        steps.append(partial(add_noise, relative=_noise_scale(config.noise, quality)))
    return partial(_take_steps, steps=tuple(steps)) if steps else None


def make_pixel_augment(
    config: AugmentConfig, *, name: str, spec: FeatureSpec, trains_masks: bool
) -> Augment | None:
    """The same steps with the same draws on images: what is moved is moved before the backbone.

    Args:
        config: of steps that move images only (`AugmentConfig.changing_values` is empty).
        name: of the pixels in a batch's features.
        spec: of the backbone's levels, to whose grid the steps keep.
        trains_masks: whether the detector has a mask head.

    Raises ConfigError: masks do not survive a step, or a step changes values.
    """
    pixels = LevelSpec(name=name, channels=3, stride=1)
    return make_augment(
        config, spec=FeatureSpec((pixels, *spec)), quality={}, trains_masks=trains_masks
    )


def _moving_steps(config: AugmentConfig, grid: Grid) -> list[Augment]:
    """Those that boxes must follow."""
    steps: list[tuple[float, Augment]] = [
        (config.mosaic, partial(mosaic, grid=grid, chance=config.mosaic)),
        (config.copy_paste, partial(copy_paste, grid=grid, chance=config.copy_paste)),
        (
            config.translate,
            partial(translate, grid=grid, chance=config.translate, most=config.translate_by),
        ),
        (config.crop, partial(crop, grid=grid, chance=config.crop, least=config.crop_to)),
        (config.flip, partial(flip, grid=grid, chance=config.flip)),
    ]
    return [step for chance, step in steps if chance > 0]


def _take_steps(batch: Batch, draws: RandomDraws, *, steps: tuple[Augment, ...]) -> Batch:
    for step in steps:
        batch = step(batch, draws)
    return batch


def _refuse_mixing(config: AugmentConfig) -> None:
    wanted = [f"augment.{key}" for key in config.mixing]
    if wanted:
        raise ConfigError(
            f"detector.mask_head learns masks, which do not survive {' and '.join(wanted)} (the "
            "masks of a target lie in one image): set them to 0, or remove detector.mask_head; "
            "all other keys of augment carry masks"
        )


def _noise_scale(factor: float, quality: Mapping[str, Quality]) -> dict[str, float]:
    """Standard deviation by level, as a share of the root mean square of the values."""
    scale = {
        level: factor * math.sqrt(own.noise / own.signal) if own.signal > 0 else 0.0
        for level, own in quality.items()
    }
    if not any(scale.values()):
        raise ConfigError(
            f"augment.noise is {factor:g} times the error of the store's codec, which has none; "
            "set augment.noise to 0, or extract with a codec that loses something, such as int8"
        )
    return scale

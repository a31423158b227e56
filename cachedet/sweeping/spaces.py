"""What is searched where nobody says --param: a space around the values of each config."""

from __future__ import annotations

import math

from cachedet.config.detector import CustomDetectorConfig, RetinaNetConfig
from cachedet.config.run import TrainConfig
from cachedet.store.reader import FeatureStore
from cachedet.sweeping.parameters import Parameter, default_of, view_weights

_SHARES_OF_CHANNELS = (0.5, 1.0, 1.5)
_SHARES_OF_EPOCHS = (0.5, 1.0, 1.5)
_EMA = (0.0, 0.99, 0.998)  # of a few thousand steps; 0: off


def shipped_space(config: TrainConfig, store: FeatureStore) -> tuple[Parameter, ...]:
    """Rate, decay, weights of losses, width, views, averaging, epochs, and what else can learn."""
    schedule, neck = config.schedule, "detector.neck.channels"
    space = [
        _around("schedule.lr", schedule.lr, by=4),
        *([_around("schedule.weight_decay", schedule.weight_decay, by=10)]
          if schedule.weight_decay else []),
        *(_around(key, default_of(config, key), by=3) for key in _box_weights(config)),
        _choices("schedule.ema_decay", sorted({*_EMA, schedule.ema_decay})),
        _choices("schedule.epochs", _shares(schedule.epochs, _SHARES_OF_EPOCHS)),
    ]  # fmt: skip
    if isinstance(width := default_of(config, neck), int):
        space.append(_choices(neck, _shares(width, _SHARES_OF_CHANNELS)))
    views = view_weights(config, store)
    if len(views) > 1:
        first = next(iter(views))
        space.append(_around(f"views.{first}", views[first], by=4))
    space += _stages(config, store)
    return tuple(each for each in space if len(each.choices) != 1)


def _box_weights(config: TrainConfig) -> tuple[str, ...]:
    if isinstance(config.detector, CustomDetectorConfig):
        return ()
    if isinstance(config.detector, RetinaNetConfig):
        return ("detector.box_weight",)
    return ("detector.rpn.box_weight", "detector.roi_head.box_weight")


def _stages(config: TrainConfig, store: FeatureStore) -> list[Parameter]:
    """Where the store has the weights of the backbone's stages: whether and how they learn."""
    manifest = store.manifest
    if config.freeze_at is not None:
        return [_around("stages.lr_scale", config.stages.lr_scale, by=4, most=10)]
    cuts = [level.name for level in manifest.network.maps.levels[:-1] if not level.tap]
    held_whole = manifest.spec == manifest.network
    if not manifest.stages_digest or not held_whole or not cuts or config.trainable != "all":
        return []
    return [_choices("freeze_at", [None, cuts[-1]])]


def _around(key: str, value: float, *, by: float, most: float = math.inf) -> Parameter:
    return Parameter(key=key, low=value / by, high=min(value * by, most), log=True)


def _choices(key: str, values: list[float] | list[int] | list[str | None]) -> Parameter:
    return Parameter(key=key, choices=tuple(values))


def _shares(value: int, shares: tuple[float, ...]) -> list[int]:
    return sorted({max(1, round(value * share)) for share in shares})

"""What --param may say, and what the config makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cachedet.config.presets import load_config
from cachedet.errors import ConfigError, InputError
from cachedet.store.reader import FeatureStore
from cachedet.sweeping.parameters import (
    Parameter,
    configure,
    default_of,
    parse_parameter,
    require_distinct,
    require_possible,
)

PRESET = load_config("retinanet_fpn_tiny")


@pytest.mark.parametrize(
    ("text", "parameter"),
    [
        ("schedule.lr=log:3e-4..3e-3", Parameter(key="schedule.lr", low=3e-4, high=3e-3, log=True)),
        ("augment.flip=0..1", Parameter(key="augment.flip", low=0, high=1)),
        ("schedule.epochs = 10..40", Parameter(key="schedule.epochs", low=10, high=40, whole=True)),
        ("views.scale=1.5=1..2", Parameter(key="views.scale=1.5", low=1, high=2)),
        ("detector.neck.channels=32,64", Parameter(key="detector.neck.channels", choices=(32, 64))),
        ("freeze_at=null,C4", Parameter(key="freeze_at", choices=(None, "C4"))),
        ("schedule.drops=[0.5],[0.6, 0.9]",
         Parameter(key="schedule.drops", choices=([0.5], [0.6, 0.9]))),
    ],
)  # fmt: skip
def test_ranges_and_choices(text: str, parameter: Parameter) -> None:
    assert parse_parameter(text, PRESET) == parameter
    assert parse_parameter(parameter.describe(), PRESET) == parameter
    for value in parameter.examples():
        assert parameter.holds(value)
        assert parameter.value_of(parameter.label_of(value)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schedule.lr", "expects key=values, such as schedule.lr=log:3e-4..3e-3"),
        ("schedule.lr=3..2", "the range is empty"),
        ("schedule.lr=2..2", "the range is empty"),
        ("schedule.lr=log:0..1", "a log: range starts above 0"),
        ("schedule.lr=a..b", "has numbers at its ends, got 'a'"),
        ("schedule.lr=0..inf", "has numbers at its ends, got 'inf'"),
        ("schedule.lr=0.1", "two choices or more.* one value alone is given with --set"),
        ("schedule.lr=1,2,1", "a choice stands there twice"),
        ("schedule.lr=[1,2", "--param schedule.lr=.* is not YAML"),
        ("seed=0..9", "nothing to search over: the best of many seeds is luck"),
    ],
)
def test_what_says_no_range(text: str, message: str) -> None:
    with pytest.raises((InputError, ConfigError), match=message):
        parse_parameter(text, PRESET)


def test_a_key_is_given_once() -> None:
    with pytest.raises(InputError, match="--param a is given twice"):
        require_distinct([Parameter(key="a", choices=(1, 2)), Parameter(key="a", low=0, high=1)])


def test_weights_of_views(tiny: Any) -> None:
    """Relative to those that are not named, which keep 1 in the mean."""
    store = FeatureStore.open(tiny.train)
    assert default_of(PRESET, "views.base", store=store) == 1.0
    changed = configure(PRESET, {"views.base": 3.0, "schedule.lr": 0.1}, store=store)
    assert changed.views == {"base": 3.0, "hflip": 1.0}
    assert changed.schedule.lr == 0.1


def test_a_value_that_the_config_refuses_is_named(tiny: Any) -> None:
    store = FeatureStore.open(tiny.train)
    refused = Parameter(key="detector.anchors.background_iou", choices=(0.4, 0.6))
    with pytest.raises(ConfigError, match="--param detector.anchors.background_iou: .*at most"):
        require_possible(refused, PRESET, store)


def test_presets_have_the_keys_of_this_page() -> None:
    text = (Path(__file__).parents[2] / "docs" / "sweep.md").read_text()
    for key in ("schedule.lr", "schedule.weight_decay", "schedule.ema_decay", "schedule.epochs"):
        assert key in text
        assert default_of(PRESET, key) is not None

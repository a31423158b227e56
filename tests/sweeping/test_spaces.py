"""The space that is searched where nobody says --param fits every preset."""

from __future__ import annotations

from typing import Any

import pytest

from cachedet.config.presets import load_config, preset_names
from cachedet.store.reader import FeatureStore
from cachedet.sweeping.parameters import default_of, require_distinct, require_possible
from cachedet.sweeping.spaces import shipped_space


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_has_one_that_holds_its_values(tiny: Any, name: str) -> None:
    config, store = load_config(name), FeatureStore.open(tiny.train)
    space = shipped_space(config, store)
    require_distinct(space)
    assert {"schedule.lr", "schedule.epochs", "detector.neck.channels"} <= {p.key for p in space}
    assert sum("box_weight" in each.key for each in space) == 1 + (
        config.detector.kind != "retinanet"
    )
    for parameter in space:
        assert parameter.holds(default_of(config, parameter.key, store=store)), parameter.key
        require_possible(parameter, config, store)


def test_stages_are_in_it_where_they_can_learn(tiny: Any) -> None:
    store = FeatureStore.open(tiny.train)
    by_key = {each.key: each for each in shipped_space(load_config("retinanet_fpn_tiny"), store)}
    assert by_key["freeze_at"].choices == (None, "C4")
    assert by_key["views.base"].low == 0.25
    fixed = load_config("retinanet_fpn_tiny", overrides={"freeze_at": "C4"})
    keys = {each.key for each in shipped_space(fixed, store)}
    assert "stages.lr_scale" in keys
    assert "freeze_at" not in keys

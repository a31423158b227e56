from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cachedet.device import choose_device
from cachedet.errors import ConfigError
from cachedet.structures import CategoryMap, Detections, FeatureSpec, LevelSpec


def test_feature_spec() -> None:
    spec = FeatureSpec(
        (LevelSpec(name="C3", channels=8, stride=8), LevelSpec(name="C4", channels=9, stride=12))
    )
    assert spec.pad_multiple == 24
    assert spec.map_shapes((48, 96)) == {"C3": (8, 6, 12), "C4": (9, 4, 8)}
    assert FeatureSpec.from_json(spec.to_json()) == spec
    with pytest.raises(ValueError, match=r"ordered fine to coarse, got strides \[12, 8\]"):
        FeatureSpec(spec.levels[::-1])


def test_tokens_belong_to_the_map_in_front_of_them() -> None:
    state = LevelSpec(name="L8", channels=8, stride=16)
    prefix = LevelSpec(name="L8_prefix", channels=8, stride=16, tokens=5)
    last = LevelSpec(name="C4", channels=8, stride=16)
    spec = FeatureSpec((state, prefix, last))
    assert spec.pad_multiple == 16
    assert spec.map_shapes((32, 64)) == {"L8": (8, 2, 4), "L8_prefix": (8, 1, 5), "C4": (8, 2, 4)}
    assert spec.maps.names == ("L8", "C4")
    assert spec.pyramid.names == ("C4",)
    assert spec.with_tokens("L8") == spec.up_to("L8").names == ("L8", "L8_prefix")
    assert spec.with_tokens("C4") == ("C4",)
    assert spec.up_to("C4") == spec
    assert spec.to_json()[:2] == [
        {"name": "L8", "channels": 8, "stride": 16},
        {"name": "L8_prefix", "channels": 8, "stride": 16, "tokens": 5},
    ]
    assert FeatureSpec.from_json(spec.to_json()) == spec
    with pytest.raises(ValueError, match="the map in front of them, got L8_prefix first"):
        FeatureSpec((prefix, state))
    for wrong in (-1, 1.0, True):
        with pytest.raises(ValueError, match="'L8': tokens must be a whole number >= 0, got"):
            replace(state, tokens=wrong)  # type: ignore[arg-type]


def test_taps_are_maps_of_one_stride() -> None:
    """All of them are what heads take; a level says so in JSON only where it is one."""
    taps = [LevelSpec(name=f"L{n}", channels=8, stride=14, tap=True) for n in (3, 6, 9)]
    token = LevelSpec(name="L9_class", channels=8, stride=14, tokens=1, tap=True)
    spec = FeatureSpec((*taps, token))
    assert spec.pad_multiple == 14
    assert spec.map_shapes((28, 56))["L3"] == (8, 2, 4)
    assert spec.map_shapes((28, 56))["L9_class"] == (8, 1, 1)
    assert spec.pyramid == spec.maps == FeatureSpec(tuple(taps))
    assert spec.with_tokens("L9") == ("L9", "L9_class")
    assert spec.to_json()[2:] == [
        {"name": "L9", "channels": 8, "stride": 14, "tap": True},
        {"name": "L9_class", "channels": 8, "stride": 14, "tokens": 1, "tap": True},
    ]
    assert FeatureSpec.from_json(spec.to_json()) == spec
    for wrong in (1, None, "yes"):
        with pytest.raises(ValueError, match="level 'L3': tap must be true or false, got"):
            replace(taps[0], tap=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("numbers", [(0, 8), (8, 0), (-1, 8), (1.5, 8), (8, True), ("8", 8)])
def test_a_level_has_whole_numbers(numbers: tuple[Any, Any]) -> None:
    channels, stride = numbers
    message = "'C3': channels and stride must be whole numbers >= 1, got ch"
    with pytest.raises(ValueError, match=message):
        LevelSpec(name="C3", channels=channels, stride=stride)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../C3", "a\\b", "C3\n", "é", "x" * 101, 5])
def test_a_level_is_named_as_a_folder_can_be(name: Any) -> None:
    with pytest.raises(ValueError, match="the name of a level must be 1 to 100 of the characters"):
        LevelSpec(name=name, channels=1, stride=8)
    assert LevelSpec(name="..C3-a_b", channels=1, stride=8).name == "..C3-a_b"


def test_levels_are_few_and_have_different_names() -> None:
    levels = [LevelSpec(name=f"L{n}", channels=1, stride=n + 1) for n in range(65)]
    assert len(FeatureSpec(tuple(levels[:64]))) == 64
    for wrong in (levels, [levels[0], replace(levels[0], stride=2)]):
        with pytest.raises(ValueError, match=r"at most 64 levels, each of another name, got"):
            FeatureSpec(tuple(wrong))


def test_category_map() -> None:
    assert CategoryMap(ids=(3, 9), names=("a", "b")).label_of() == {3: 0, 9: 1}
    with pytest.raises(ValueError, match="category ids must be unique"):
        CategoryMap(ids=(3, 3), names=("a", "b"))


def test_keeping_rows(annotations_of: Any) -> None:
    boxes = [[[0, 0, 1, 1, 0, 0]], [], [[2, 2, 3, 3, 1, 1], [4, 4, 5, 5, 2, 0]]]
    kept = annotations_of([(10, 10), (20, 20), (30, 30)], boxes).keep_rows([2, 1])
    assert kept.size_of(0) == (30, 30)
    assert kept.offsets.tolist() == [0, 2, 2]
    assert kept.labels.tolist() == [1, 2]
    assert kept.boxes[kept.boxes_of(0)].tolist() == [[2, 2, 3, 3], [4, 4, 5, 5]]
    assert len(kept.keep_rows([])) == 0


def test_keeping_boxes_and_other_classes(annotations_of: Any) -> None:
    boxes = [[[0, 0, 1, 1, 0, 0]], [], [[2, 2, 3, 3, 1, 1], [4, 4, 5, 5, 2, 0]]]
    annotations = annotations_of([(10, 10), (20, 20), (30, 30)], boxes)
    kept = annotations.keep_boxes(annotations.labels != 1)
    assert kept.offsets.tolist() == [0, 1, 1, 2]
    assert kept.boxes.tolist() == [[0, 0, 1, 1], [4, 4, 5, 5]]
    now = CategoryMap(ids=(5,), names=("class 5",))
    other = annotations.with_classes(now, [-1, 0, -1])
    assert (other.categories, other.offsets.tolist()) == (now, [0, 0, 0, 1])
    assert (other.labels.tolist(), other.crowd.tolist()) == ([0], [True])
    both = annotations.with_classes(now, [0, 0, 0])
    assert (both.labels.tolist(), len(both.boxes)) == ([0, 0, 0], 3)


def test_detections_above_a_score() -> None:
    found = Detections(
        image_id=1,
        boxes=torch.zeros(2, 4),
        scores=torch.tensor([0.9, 0.2]),
        labels=torch.tensor([1, 0]),
    )
    assert found.above(0.5).labels.tolist() == [1]


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}
    with pytest.raises(ConfigError, match="device 'warp' cannot be used here"):
        choose_device("warp")

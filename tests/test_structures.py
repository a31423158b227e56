from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cachedet.device import choose_device
from cachedet.errors import ConfigError
from cachedet.structures import CategoryMap, Detections, FeatureSpec, LevelSpec, Truth


def test_feature_spec() -> None:
    spec = FeatureSpec(
        (LevelSpec(name="C3", channels=8, stride=8), LevelSpec(name="C4", channels=9, stride=12))
    )
    assert spec.pad_multiple == 24
    assert spec.map_shapes((48, 96)) == {"C3": (8, 6, 12), "C4": (9, 4, 8)}
    assert FeatureSpec.from_json(spec.to_json()) == spec
    with pytest.raises(ValueError, match=r"ordered fine to coarse, got strides \[12, 8\]"):
        FeatureSpec(spec.levels[::-1])
    with pytest.raises(ValueError, match="'C3': channels and stride must be >= 1"):
        LevelSpec(name="C3", channels=0, stride=8)


def test_category_map() -> None:
    assert CategoryMap(ids=(3, 9), names=("a", "b")).label_of() == {3: 0, 9: 1}
    with pytest.raises(ValueError, match="category ids must be unique"):
        CategoryMap(ids=(3, 3), names=("a", "b"))


def test_keeping_rows(truth_of: Callable[..., Truth]) -> None:
    boxes = [[[0, 0, 1, 1, 0, 0]], [], [[2, 2, 3, 3, 1, 1], [4, 4, 5, 5, 2, 0]]]
    kept = truth_of([(10, 10), (20, 20), (30, 30)], boxes).keep_rows([2, 1])
    assert kept.size_of(0) == (30, 30)
    assert kept.offsets.tolist() == [0, 2, 2]
    assert kept.labels.tolist() == [1, 2]
    assert kept.boxes[kept.boxes_of(0)].tolist() == [[2, 2, 3, 3], [4, 4, 5, 5]]
    assert len(kept.keep_rows([])) == 0


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

"""Images and batches that stand for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cachedet.config.run import TrainConfig
from cachedet.data.views import parse_views
from cachedet.errors import ConfigError
from cachedet.estimation.sample import (
    BatchShape,
    choose_batches,
    commonest_size,
    count_pixels,
    epoch_batches,
    keys_like,
    most_images,
    padded_sizes,
    spread_batches,
    spread_rows,
)

VIEWS = parse_views("base,scale=0.5")


def test_padded_sizes_by_hand(annotations_of: Any) -> None:
    """100 x 200 at 64: 32 x 64 fits a multiple of 32; halved 16 x 32, padded to 32 x 32."""
    annotations = annotations_of([(100, 200), (200, 200), (100, 200)])
    sizes = padded_sizes(annotations, VIEWS, image_size=64, pad_multiple=32)
    assert sizes.tolist() == [[[32, 64], [64, 64], [32, 64]], [[32, 32], [32, 32], [32, 32]]]
    assert count_pixels(sizes) == 32 * 64 * 2 + 64 * 64 + 3 * 32 * 32


def test_rows_are_spread_over_sizes_and_reach_the_largest() -> None:
    sides = [64] * 6 + [96] * 3 + [32]
    sizes = np.array([[[side, side] for side in sides]])
    rows = spread_rows(sizes, 4)
    assert [sides[row] for row in rows] == [64, 64, 96, 32]
    assert rows == sorted(rows)


def test_the_commonest_size() -> None:
    sizes = np.array([[32, 64], [64, 64], [64, 32], [64, 64]])
    assert commonest_size(sizes) == ((64, 64), [1, 3])


def test_fewer_images_than_the_sample_are_all_taken() -> None:
    sizes = np.full((1, 5, 2), 64)
    assert spread_rows(sizes, 32) == [0, 1, 2, 3, 4]


def config_of(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"schedule": {"batch_size": 4}, **changes})


def test_batches_of_an_epoch_are_those_of_training(annotations_of: Any) -> None:
    """Nine images of one size and three of another, one view: 4 + 4 + 1 and 3."""
    annotations = annotations_of([(100, 200)] * 9 + [(200, 100)] * 3)
    views = parse_views("base")
    sizes = padded_sizes(annotations, views, image_size=64, pad_multiple=32)
    batches, shown = epoch_batches(annotations, sizes, views, config_of(), where="here")
    assert shown == [0]
    shapes = sorted((batch.bucket, batch.images) for batch in batches)
    assert shapes == [((32, 64), 1), ((32, 64), 4), ((32, 64), 4), ((64, 32), 3)]


def test_only_views_that_are_trained_on(annotations_of: Any) -> None:
    annotations = annotations_of([(100, 200)] * 8)
    sizes = padded_sizes(annotations, VIEWS, image_size=64, pad_multiple=32)
    config = config_of(views=["scale-0.5"])
    batches, shown = epoch_batches(annotations, sizes, VIEWS, config, where="here")
    assert shown == [1]
    assert [batch.bucket for batch in batches] == [(32, 32), (32, 32)]


def test_views_the_store_will_not_have(annotations_of: Any) -> None:
    annotations = annotations_of([(100, 200)])
    sizes = padded_sizes(annotations, VIEWS, image_size=64, pad_multiple=32)
    with pytest.raises(ConfigError, match="here has no 'hflip'"):
        epoch_batches(annotations, sizes, VIEWS, config_of(views=["hflip"]), where="here")


def test_sampling_repeats_rare_classes(annotations_of: Any) -> None:
    """One of 16 images has a box: at threshold 1 it is shown sqrt(16) = 4 times."""
    annotations = annotations_of([(64, 64)] * 16, [[[1, 1, 9, 9, 0, 0]], *[[] for _ in range(15)]])
    views = parse_views("base")
    sizes = padded_sizes(annotations, views, image_size=64, pad_multiple=32)
    config = config_of(sampling={"kind": "repeat_factor", "threshold": 1.0})
    batches, _ = epoch_batches(annotations, sizes, views, config, where="here")
    assert sum(batch.images for batch in batches) == 19


def test_batches_are_spread_over_sizes() -> None:
    """Sixteen of 1 to 16 images: every fourth, so that the mean is theirs within a half."""
    batches = [BatchShape(bucket=(32, 32), images=n) for n in range(16, 0, -1)]
    spread = spread_batches(batches, 4)
    assert sorted(batch.images for batch in spread) == [3, 7, 11, 15]
    assert len(spread_batches(batches, 100)) == 16


def test_a_batch_of_images_that_are_there() -> None:
    held = {(32, 32): np.array([[0, 1], [1, 1], [0, 5]]), (64, 64): np.array([[0, 7]])}
    keys, shape = keys_like(BatchShape(bucket=(32, 32), images=4), held, start=2)
    assert keys.tolist() == [[0, 5], [0, 1], [1, 1], [0, 5]]
    assert shape.bucket == (32, 32)
    keys, shape = keys_like(BatchShape(bucket=(64, 96), images=2), held)
    assert keys.tolist() == [[0, 7], [0, 7]]
    assert shape == BatchShape(bucket=(64, 64), images=2)


HELD = {(32, 32): np.array([[0, 0], [0, 1], [1, 0]]), (64, 64): np.array([[0, 2]])}
EPOCH = [*[BatchShape(bucket=(32, 32), images=4)] * 9, BatchShape(bucket=(64, 64), images=2)]


def test_batches_stand_for_the_epoch() -> None:
    chosen = choose_batches(EPOCH, HELD, most_images=100)
    assert chosen.warm_up.tolist() == [[0, 2], [0, 2]]  # the one of most pixels
    assert len(chosen.timed) == 8
    assert sorted(chosen.pixels) == [4096] * 7 + [8192]
    assert [len(keys) * 32 * 32 for keys in chosen.timed if keys[0, 1] < 2] == [4096] * 7
    assert chosen.enlarge == 1.0


def test_of_large_batches_a_part_is_taken() -> None:
    chosen = choose_batches(EPOCH, HELD, most_images=1)
    assert set(map(len, chosen.timed)) == {1}
    assert chosen.enlarge == 2.0


def test_how_many_images_can_be_tried() -> None:
    """6 s over five forwards of 0.05 s: 24."""
    assert most_images(0.05) == 24
    assert most_images(10.0) == 8
    assert most_images(0.0) > 1_000_000

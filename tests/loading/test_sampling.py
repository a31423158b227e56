from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cachedet.config.run import dump_config, load_train_config, make_train_config
from cachedet.errors import ConfigError
from cachedet.loading.sampling import (
    PlannedBatch,
    describe_empty_classes,
    indices_of_rank,
    make_class_balanced_sampler,
    make_repeat_factor_sampler,
    plan_epoch,
    planned_batches,
    resolve_views,
)
from cachedet.structures import Annotations

BOX = [10.0, 10.0, 30.0, 40.0]


def plain_plan(
    buckets: NDArray[np.int64], *, batch_size: int, seed: int, epoch: int
) -> list[list[list[int]]]:
    """What the first release did, in plain loops: runs of it must be continued as they were."""
    rng = np.random.default_rng([seed, epoch])
    num_views, num_rows = buckets.shape
    rows = rng.permutation(num_rows)
    views = rng.integers(num_views, size=num_rows)
    of_bucket: dict[int, list[list[int]]] = {}
    for view, row in zip(views.tolist(), rows.tolist(), strict=True):
        of_bucket.setdefault(int(buckets[view, row]), []).append([view, row])
    batches = [
        of_bucket[bucket][start : start + batch_size]
        for bucket in sorted(of_bucket)
        for start in range(0, len(of_bucket[bucket]), batch_size)
    ]
    return [batches[index] for index in rng.permutation(len(batches))]


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    table=st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=1, max_size=30),
    batch_size=st.integers(1, 40),
    epoch=st.integers(0, 9),
)
def test_each_image_once_in_batches_of_one_bucket(
    table: list[list[int]], batch_size: int, epoch: int
) -> None:
    """Law L6: the plan is a pure function of its arguments."""
    buckets = np.array(table, dtype=np.int64).T
    batches = plan_epoch(buckets, batch_size=batch_size, seed=1, epoch=epoch)
    assert [b.tolist() for b in batches] == plain_plan(
        buckets, batch_size=batch_size, seed=1, epoch=epoch
    )
    rows = sorted(int(row) for batch in batches for _, row in batch)
    assert rows == list(range(len(table)))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len({int(buckets[view, row]) for view, row in batch}) == 1


def test_only_the_last_batch_of_a_bucket_is_smaller() -> None:
    buckets = np.array([[0] * 7 + [1] * 4])
    sizes = sorted(len(b) for b in plan_epoch(buckets, batch_size=3, seed=0, epoch=0))
    assert sizes == [1, 1, 3, 3, 3]
    whole = plan_epoch(buckets, batch_size=100, seed=0, epoch=0)  # larger than the data
    assert sorted(len(b) for b in whole) == [4, 7]


def test_views_and_order_change_with_epoch_and_seed() -> None:
    buckets = np.zeros((2, 64), dtype=np.int64)
    plans = {
        (seed, epoch): np.concatenate(plan_epoch(buckets, batch_size=8, seed=seed, epoch=epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({plan.tobytes() for plan in plans.values()}) == 4
    share = np.mean([plan[:, 0].mean() for plan in plans.values()])
    assert 0.35 < share < 0.65


def test_views_come_as_often_as_their_weights_say() -> None:
    buckets = np.zeros((3, 20_000), dtype=np.int64)
    plan = plan_epoch(buckets, batch_size=64, seed=3, epoch=1, probabilities=(0.2, 0.5, 0.3))
    shares = np.bincount(np.concatenate(plan)[:, 0]) / 20_000
    np.testing.assert_allclose(shares, (0.2, 0.5, 0.3), atol=0.015)  # 4 standard deviations
    again = plan_epoch(buckets, batch_size=64, seed=3, epoch=1, probabilities=(0.2, 0.5, 0.3))
    assert [b.tolist() for b in plan] == [b.tolist() for b in again]
    equal = plan_epoch(buckets, batch_size=64, seed=3, epoch=1, probabilities=(1 / 3, 1 / 3, 1 / 3))
    plain = plan_epoch(buckets, batch_size=64, seed=3, epoch=1)
    assert [b.tolist() for b in equal] == [b.tolist() for b in plain]


HELD = ("base", "hflip", "jitter-s0", "jitter-s1")


def test_probabilities_of_views() -> None:
    def resolve(wanted: Any) -> dict[str, float]:
        return resolve_views(wanted, held=HELD, where="s.zarr")

    assert resolve(None) == dict.fromkeys(HELD, 0.25)
    assert resolve(("hflip", "base")) == {"hflip": 0.5, "base": 0.5}
    assert list(resolve(("hflip", "base"))) == ["hflip", "base"]
    assert resolve({"base": 1, "hflip": 1, "jitter": 2}) == dict.fromkeys(HELD, 0.25)
    assert resolve({"jitter": 1, "jitter-s1": 1}) == {"jitter-s0": 0.25, "jitter-s1": 0.75}
    assert resolve(("base", "jitter")) == {"base": 0.5, "jitter-s0": 0.25, "jitter-s1": 0.25}


def test_weights_for_views_the_store_lacks() -> None:
    with pytest.raises(
        ConfigError,
        match=r"views: s.zarr has no 'hflp', 'crop'; nearest: 'hflip'.*; it holds base, hflip, "
        r"jitter-s0, jitter-s1, so also the families jitter. Extract the missing views",
    ):
        resolve_views({"base": 1, "hflp": 2, "crop": 1}, held=HELD, where="s.zarr")
    with pytest.raises(ConfigError, match=r"it holds base. Extract"):
        resolve_views(("hflip",), held=("base",), where="s.zarr")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{base: 0}", "weight of view 'base' must be above 0 and at most 1e\\+06"),
        ("{base: 1, hflip: -1}", "weight of view 'hflip' must be above 0"),
        ("{base: .nan}", "weight of view 'base' must be above 0"),
        ("{base: .inf}", "weight of view 'base' must be above 0"),
        ("{base: true}", "weight of view 'base' must be above 0"),
        ("{}", "views must name at least one view, got {}"),
        ("[base, base]", "views must name each view once; for other probabilities give weights"),
        ("base", "expected names of views as \\[base, hflip\\], or weights"),
        ("[1]", "expected names of views"),
    ],
)
def test_wrong_views_in_a_config(tmp_path: Any, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(f"views: {text}")
    with pytest.raises(ConfigError, match=message):
        load_train_config(tmp_path / "c.yaml")


def test_views_of_a_config_survive_writing_it_down() -> None:
    import yaml

    for views in (["base", "hflip"], {"base": 1.0, "jitter": 2.0}, None):
        config = make_train_config({"views": views}, where="test")
        written = yaml.safe_load(dump_config(config))
        assert written["views"] == views
        assert make_train_config(written, where="dump") == config


def boxes_of(labels: list[list[int]], *, crowd: int = 0) -> list[list[list[float]]]:
    return [[[*BOX, float(label), float(crowd)] for label in of_image] for of_image in labels]


def test_repeat_factors_are_those_of_the_paper(annotations_of: Any) -> None:
    labels = [[0], [0, 0, 1], [0], [], [0], [0], [0], [0]]
    annotations = annotations_of([(64, 64)] * 8, boxes_of(labels))
    factors = make_repeat_factor_sampler(annotations, threshold=0.5).factors
    for row, of_image in enumerate(labels):
        expected = 1.0
        for label in of_image:
            share = sum(label in other for other in labels) / len(labels)
            expected = max(expected, (0.5 / share) ** 0.5)
        assert factors[row] == pytest.approx(expected)
    assert factors[1] == 2.0


def test_repeat_factors_show_rare_images_more_often(annotations_of: Any) -> None:
    annotations = annotations_of([(64, 64)] * 5, boxes_of([[0], [0, 1], [0], [], [0]]))
    sampler = make_repeat_factor_sampler(annotations, threshold=0.45)  # 1.5 for image 1
    assert sampler.factors[1] == pytest.approx(1.5)
    buckets = np.zeros((1, 5), dtype=np.int64)
    shown = np.zeros(5)
    sizes = set()
    for epoch in range(400):
        plan = plan_epoch(buckets, batch_size=2, seed=0, epoch=epoch, sampler=sampler)
        rows = np.concatenate(plan)[:, 1]
        sizes.add(len(rows))
        shown += np.bincount(rows, minlength=5)
    assert sizes == {5, 6}
    assert shown[[0, 2, 3, 4]].tolist() == [400] * 4
    assert shown[1] == pytest.approx(600, abs=40)  # 4 standard deviations


def test_class_balanced_draws(annotations_of: Any) -> None:
    """Class 0 in nine images, class 2 in one, class 1 in none, one image empty."""
    annotations = annotations_of([(64, 64)] * 11, boxes_of([[0, 0]] * 9 + [[2]] + [[]]))
    sampler = make_class_balanced_sampler(annotations)
    buckets = np.zeros((1, 11), dtype=np.int64)
    shown = np.zeros(11)
    for epoch in range(300):
        plan = plan_epoch(buckets, batch_size=4, seed=0, epoch=epoch, sampler=sampler)
        rows = np.concatenate(plan)[:, 1]
        assert len(rows) == 11
        shown += np.bincount(rows, minlength=11)
    assert shown[10] == 0
    assert shown[9] / shown.sum() == pytest.approx(0.5, abs=0.035)
    np.testing.assert_allclose(shown[:9] / shown.sum(), 0.5 / 9, atol=0.017)


def test_crowd_boxes_do_not_count(annotations_of: Any) -> None:
    boxes = boxes_of([[0], [0]]) + boxes_of([[2]], crowd=1)
    annotations = annotations_of([(64, 64)] * 3, boxes)
    assert make_class_balanced_sampler(annotations).rows.tolist() == [0, 1]
    assert make_repeat_factor_sampler(annotations, threshold=1.0).factors[2] == 1.0
    assert describe_empty_classes(annotations) == (
        "2 of 3 classes have no box to learn from and are never sampled: class 5, class 90"
    )


def test_classes_without_a_box_are_named(annotations_of: Any) -> None:
    assert describe_empty_classes(annotations_of([(64, 64)], boxes_of([[0, 1, 2]]))) is None
    many = annotations_of([(64, 64)], boxes_of([[0]]), ids=tuple(range(9)))
    line = describe_empty_classes(many)
    assert line.startswith("8 of 9 classes")
    assert line.endswith("class 1, class 2, class 3, class 4, class 5, ...")


def test_all_images_empty(annotations_of: Any) -> None:
    annotations = annotations_of([(64, 64)] * 3)
    with pytest.raises(
        ConfigError, match="sampling.kind=repeat_factor needs boxes, but none of the 3 images"
    ):
        make_repeat_factor_sampler(annotations, threshold=0.1)
    with pytest.raises(
        ConfigError, match="sampling.kind=class_balanced needs boxes.*use sampling.kind=uniform"
    ):
        make_class_balanced_sampler(annotations)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(size=st.integers(1, 20), world_size=st.integers(1, 6))
def test_ranks_share_a_global_batch(size: int, world_size: int) -> None:
    shares = [indices_of_rank(size, rank=rank, world_size=world_size) for rank in range(world_size)]
    if size < world_size:
        assert all(share == range(size) for share in shares)
        return
    assert sorted(index for share in shares for index in share) == list(range(size))
    assert [share[0] for share in shares] == list(range(world_size))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_an_epoch_of_lvis_is_planned_in_no_time() -> None:
    """100,000 images, 1,203 classes, 1.2 million boxes, 3 views in 4 buckets."""
    from cachedet.structures import CategoryMap

    rng = np.random.default_rng(0)
    num_rows, num_boxes, num_classes = 100_000, 1_200_000, 1203
    owners = np.sort(rng.integers(num_rows, size=num_boxes))
    annotations = Annotations(
        image_ids=np.arange(num_rows),
        file_names=(),
        sizes_hw=np.zeros((num_rows, 2), dtype=np.int64),
        offsets=np.searchsorted(owners, np.arange(num_rows + 1)),
        boxes=np.zeros((num_boxes, 4)),
        labels=(num_classes * rng.random(num_boxes) ** 4).astype(np.int64),
        crowd=np.zeros(num_boxes, dtype=np.bool_),
        areas=np.zeros(num_boxes),
        categories=CategoryMap(
            ids=tuple(range(num_classes)), names=tuple(map(str, range(num_classes)))
        ),
    )
    buckets = rng.integers(4, size=(3, num_rows))
    samplers = [
        make_repeat_factor_sampler(annotations, threshold=0.001),
        make_class_balanced_sampler(annotations),
    ]
    for sampler in samplers:
        started = time.process_time()
        plan_epoch(
            buckets, batch_size=8, seed=0, epoch=0, sampler=sampler, probabilities=(0.5, 0.3, 0.2)
        )
        assert time.process_time() - started < 2


def test_batches_that_are_due_know_their_place() -> None:
    def plan(epoch: int) -> list[NDArray[np.int64]]:
        return [np.array([[0, 10 * epoch + number]]) for number in range(epoch + 1)]

    planned = list(planned_batches(plan, 1, skip=1, until=3))
    assert [(int(batch.keys[0, 1]), batch.epoch, batch.number) for batch in planned] == [
        (11, 1, 1),
        (20, 2, 0),
        (21, 2, 1),
        (22, 2, 2),
    ]
    assert list(planned_batches(plan, 1, skip=2)) == []  # a whole epoch was taken
    assert PlannedBatch(np.zeros((1, 2), np.int64))[1:] == (0, 0)

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.store.reader import FeatureStore
from cachedet.training.loader import FeatureLoader, plan_epoch


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    table=st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=1, max_size=30),
    batch_size=st.integers(1, 5),
    epoch=st.integers(0, 9),
)
def test_each_picture_once_in_batches_of_one_bucket(
    table: list[list[int]], batch_size: int, epoch: int
) -> None:
    """Law L6: the plan is a pure function of its arguments."""
    buckets = np.array(table, dtype=np.int64).T
    batches = plan_epoch(buckets, batch_size=batch_size, seed=1, epoch=epoch)
    again = plan_epoch(buckets, batch_size=batch_size, seed=1, epoch=epoch)
    assert [b.tolist() for b in batches] == [b.tolist() for b in again]
    rows = sorted(int(row) for batch in batches for _, row in batch)
    assert rows == list(range(len(table)))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len({int(buckets[view, row]) for view, row in batch}) == 1


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


def test_batches_are_those_of_the_plan(tiny: Any) -> None:
    store = FeatureStore.open(tiny.train)
    loader = FeatureLoader(
        store, views=("base", "hflip"), levels=("C3", "C5"), batch_size=3, seed=5
    )
    plan, batches = loader.plan(2), list(loader.batches(2))
    assert len(plan) == len(batches)
    for keys, batch in zip(plan, batches, strict=True):
        assert list(batch.features) == ["C3", "C5"]
        assert batch.image_ids == [int(store.truth.image_ids[row]) for _, row in keys]
        for n, (view, row) in enumerate(keys):
            expected = store.read(int(row), ("base", "hflip")[view])
            assert torch.equal(batch.features["C5"][n], expected["C5"])
    rest = list(loader.batches(2, skip=2))
    assert [b.image_ids for b in rest] == [b.image_ids for b in batches[2:]]


def test_a_reading_error_reaches_the_training_loop(tiny: Any, tmp_path: Path) -> None:
    import shutil

    from cachedet.errors import CorruptBlockError

    shutil.copytree(tiny.train, tmp_path / "s.zarr")
    store = FeatureStore.open(tmp_path / "s.zarr")
    shutil.rmtree(tmp_path / "s.zarr" / "base")
    loader = FeatureLoader(store, views=("base",), levels=("C3",), batch_size=3, seed=5)
    with pytest.raises(CorruptBlockError, match="the shard file is missing"):
        list(loader.batches(0))

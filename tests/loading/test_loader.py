from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cachedet.augmentation.draws import RandomDraws
from cachedet.augmentation.steps import make_augment
from cachedet.config.run import AugmentConfig, make_train_config
from cachedet.errors import ConfigError, CorruptBlockError, StoreError
from cachedet.loading.loader import FeatureLoader, make_run_loader
from cachedet.loading.residency import StreamedFeatures
from cachedet.store.reader import FeatureStore, Key
from cachedet.structures import Batch, Features

VIEWS = ("base", "hflip")
LEVELS = ("C3", "C5")


def loader_of(store: FeatureStore, **changes: Any) -> FeatureLoader:
    values: dict[str, Any] = {"views": VIEWS, "levels": LEVELS, "batch_size": 3, "seed": 5}
    return FeatureLoader(store, **(values | changes))


class WatchedReads(StreamedFeatures):
    """Calls a function before each read."""

    def __init__(self, store: FeatureStore, on_read: Callable[[], object]) -> None:
        super().__init__(store, levels=LEVELS, device=torch.device("cpu"))
        self._on_read = on_read

    def read(self, keys: Sequence[Key]) -> Features:
        self._on_read()
        return super().read(keys)


def test_batches_are_those_of_the_plan(tiny: Any) -> None:
    store = FeatureStore.open(tiny.train)
    loader = loader_of(store)
    plan, batches = loader.plan(2), list(loader.epoch(2))
    assert len(plan) == len(batches)
    for keys, batch in zip(plan, batches, strict=True):
        assert list(batch.features) == ["C3", "C5"]
        assert batch.image_ids == [int(store.annotations.image_ids[row]) for _, row in keys]
        for n, (view, row) in enumerate(keys):
            expected = store.read(int(row), VIEWS[view])
            assert torch.equal(batch.features["C5"][n], expected["C5"])
    rest = list(loader.epoch(2, skip=2))
    assert [b.image_ids for b in rest] == [b.image_ids for b in batches[2:]]


def test_batches_come_channels_last(tiny: Any) -> None:
    """Not in the training thread, which would wait for it."""
    for batch in loader_of(FeatureStore.open(tiny.train)).epoch(0):
        for maps in batch.features.values():
            assert maps.is_contiguous(memory_format=torch.channels_last)
        assert batch.nbytes == sum(maps.numel() * 4 for maps in batch.features.values())


def test_a_reading_error_reaches_the_training_loop(tiny: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny.train, tmp_path / "s.zarr")
    store = FeatureStore.open(tmp_path / "s.zarr")
    shutil.rmtree(tmp_path / "s.zarr" / "base")
    with pytest.raises(CorruptBlockError, match="the shard file is missing"):
        list(loader_of(store, views=("base",)).epoch(0))


def test_the_disk_vanishes_in_the_middle_of_an_epoch(tiny: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny.train, tmp_path / "s.zarr")
    store = FeatureStore.open(tmp_path / "s.zarr")
    store._chunks._most_files = 1
    loader = loader_of(store, batch_size=1)
    left = [3]

    def vanish() -> None:
        if left[0] == 0:
            shutil.rmtree(tmp_path / "s.zarr")
        left[0] -= 1

    loader._source = WatchedReads(store, vanish)
    batches = loader.epoch(0)
    for _ in range(3):
        next(batches)
    with pytest.raises(StoreError, match="s.zarr is gone: its folder was removed or its disk unm"):
        next(batches)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_read_their_share_of_the_global_batches(tiny: Any, world_size: int) -> None:
    store = FeatureStore.open(tiny.train)
    whole = loader_of(store, batch_size=4)
    ranks = [
        loader_of(store, batch_size=4, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for loader in ranks:
        assert [b.tolist() for b in loader.plan(1)] == [b.tolist() for b in whole.plan(1)]
    shares = [list(loader.epoch(1)) for loader in ranks]
    for number, batch in enumerate(whole.epoch(1)):
        small = len(batch.targets) < world_size
        for rank, of_rank in enumerate(shares):
            share = batch.image_ids if small else batch.image_ids[rank::world_size]
            assert of_rank[number].image_ids == share


def add_noise(batch: Batch, draws: RandomDraws) -> Batch:
    assert threading.current_thread() is not threading.main_thread()
    return Batch(
        features={
            level: maps + torch.rand(maps.shape, generator=draws.of_batch)
            for level, maps in batch.features.items()
        },
        targets=batch.targets,
    )


def drawn_by(batches: Sequence[Batch], plain: Sequence[Batch]) -> list[torch.Tensor]:
    return [a.features["C5"] - b.features["C5"] for a, b in zip(batches, plain, strict=True)]


def test_augmentation_depends_on_seed_epoch_and_batch_alone(tiny: Any) -> None:
    store = FeatureStore.open(tiny.train)
    loader = loader_of(store, augment=add_noise)
    first, again = list(loader.epoch(1)), list(loader.epoch(1))
    torch.rand(3)  # the global generator has no say
    rest = list(loader.epoch(1, skip=1))
    for one, other in [*zip(first, again, strict=True), *zip(first[1:], rest, strict=True)]:
        assert torch.equal(one.features["C5"], other.features["C5"])
    plain = list(loader_of(store).epoch(1))
    drawn = drawn_by(first, plain)
    assert len({tuple(noise.flatten()[:8].tolist()) for noise in drawn}) == len(drawn)
    other_seed = loader_of(store, augment=add_noise, seed=6)
    other_seed.plan = loader.plan  # type: ignore[method-assign]
    for before, after in zip(drawn, drawn_by(list(other_seed.epoch(1)), plain), strict=True):
        assert not torch.equal(before, after)


def test_epochs_that_follow_are_those_read_alone(tiny: Any) -> None:
    """Images and what augmentation draws; only the first epoch is entered in its middle."""
    loader = loader_of(FeatureStore.open(tiny.train), augment=add_noise)
    single_process = [*loader.epoch(1, skip=1), *loader.epoch(2), *loader.epoch(3)]
    together = list(loader.epoch(1, skip=1, until=4))
    assert [b.image_ids for b in together] == [b.image_ids for b in single_process]
    for one, other in zip(together, single_process, strict=True):
        assert torch.equal(one.features["C5"], other.features["C5"])
    assert not list(loader.epoch(4, until=4))


def test_the_next_epoch_is_read_while_this_one_ends(tiny: Any) -> None:
    store, read = FeatureStore.open(tiny.train), threading.Semaphore(0)
    loader = loader_of(store, source=WatchedReads(store, read.release))
    steps = len(loader.plan(0))
    with closing(loader.epoch(0, until=2)) as batches:
        for _ in range(steps):
            next(batches)
        assert all(read.acquire(timeout=10) for _ in range(steps + 1))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_augment_a_image_as_one_process_does(tiny: Any, world_size: int) -> None:
    """Of their share, and of a batch that all of them read whole."""
    store = FeatureStore.open(tiny.train)
    config = AugmentConfig(translate=0.5, crop=0.5, flip=0.5)
    augment = make_augment(config, spec=store.spec)
    whole = loader_of(store, augment=augment, batch_size=3)
    sizes = [len(batch.targets) for batch in whole.epoch(0)]
    assert min(sizes) < world_size <= max(sizes)
    for rank in range(world_size):
        of_rank = loader_of(store, augment=augment, batch_size=3, rank=rank, world_size=world_size)
        for batch, share in zip(whole.epoch(0), of_rank.epoch(0), strict=True):
            indices = range(len(batch.targets))
            indices = indices if len(indices) < world_size else indices[rank::world_size]
            assert share.image_ids == [batch.image_ids[index] for index in indices]
            for n, index in enumerate(indices):
                assert torch.equal(share.targets[n].boxes, batch.targets[index].boxes)
                for level in LEVELS:
                    assert torch.equal(share.features[level][n], batch.features[level][index])


def test_what_is_read_ahead_is_bounded_by_bytes(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore.open(tiny.train)
    read = threading.Semaphore(0)
    count = [0]

    def note() -> None:
        count[0] += 1
        read.release()

    source = WatchedReads(store, note)
    for room, expected in ((1, 2), (1 << 30, 8)):
        monkeypatch.setattr("cachedet.loading.loader._AHEAD_NBYTES", room)
        loader = loader_of(store, batch_size=1, source=source)
        count[0] = 0
        batches = loader.epoch(0)
        next(batches)
        for _ in range(expected):
            assert read.acquire(timeout=10)
        assert count[0] == expected
        batches.close()
        while read.acquire(blocking=False):
            pass


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_readers_give_way_to_the_step(tiny: Any) -> None:
    """Their priority is lower than the trainer's, which keeps its own, and they use one core."""
    store = FeatureStore.open(tiny.train)
    seen: set[tuple[int, int]] = set()

    def note() -> None:
        mine = threading.get_native_id()
        seen.add((os.getpriority(os.PRIO_PROCESS, mine), torch.get_num_threads()))

    before = os.getpriority(os.PRIO_PROCESS, 0)
    list(loader_of(store, source=WatchedReads(store, note)).epoch(0))
    assert seen == {(min(before + 10, 19), 1)}
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_a_loader_that_is_left_early_leaves_no_thread(tiny: Any) -> None:
    batches = loader_of(FeatureStore.open(tiny.train), batch_size=1).epoch(0)
    next(batches)
    batches.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("feature-reader") for name in names)


def config_of(**changes: Any) -> Any:
    values = {"device": "cpu", "schedule": {"batch_size": 4}, "residency": "stream"}
    return make_train_config(values | changes, where="test")


def test_the_loader_of_a_config(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="cachedet")
    store = FeatureStore.open(tiny.train)
    loaders = {
        residency: make_run_loader(config_of(residency=residency), store)
        for residency in ("stream", "ram", "device", "auto")
    }
    lines = [line for line in caplog.messages if "residency" in line]
    assert [line.split(":")[0] for line in lines] == [f"residency {kind}" for kind in loaders]
    assert "residency auto: ram, as encoded features need" in lines[3]
    assert "at most half of" in lines[3]
    batches = [list(loader.epoch(0)) for loader in loaders.values()]
    for other in batches[1:]:
        for one, two in zip(batches[0], other, strict=True):
            assert one.image_ids == two.image_ids
            for level, maps in one.features.items():
                assert torch.equal(maps, two.features[level])
    caplog.clear()
    make_run_loader(config_of(), store, rank=1, world_size=2)
    assert caplog.messages == []


def test_weights_of_views_reach_the_plan(tiny: Any) -> None:
    store = FeatureStore.open(tiny.train)
    loader = make_run_loader(config_of(views={"base": 1, "hflip": 1e6}), store)
    assert all((keys[:, 0] == 1).all() for keys in loader.plan(0))
    equal = make_run_loader(config_of(views={"base": 2, "hflip": 2}), store).plan(3)
    assert [b.tolist() for b in equal] == [
        b.tolist() for b in make_run_loader(config_of(), store).plan(3)
    ]
    with pytest.raises(ConfigError, match=r"train.zarr has no 'crop'; .*holds base, hflip"):
        make_run_loader(config_of(views={"base": 1, "crop": 1}), store)


def test_samplings_of_a_config(
    tmp_path: Path, store_kit: Any, annotations_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="cachedet")
    boxes = [[[1.0, 2, 30, 40, 1, 0]], [], [[5, 5, 9, 9, 0, 1]], [], [[0, 0, 50, 60, 1, 0]]]
    annotations = annotations_of([(96, 128)] * 5, boxes)
    store = FeatureStore.open(store_kit.of(annotations).fill(tmp_path / "s.zarr"))

    def rows_of(sampling: dict[str, Any]) -> list[int]:
        loader = make_run_loader(config_of(sampling=sampling), store)
        return sorted(np.concatenate(loader.plan(0))[:, 1].tolist())

    assert rows_of({"kind": "uniform"}) == [0, 1, 2, 3, 4]
    assert "2 of 3 classes have no box to learn from" in caplog.text
    assert set(rows_of({"kind": "class_balanced"})) == {0, 4}
    assert rows_of({"kind": "repeat_factor"}) == [0, 1, 2, 3, 4]
    twice = rows_of({"kind": "repeat_factor", "threshold": 1.0})  # sqrt(1 / 0.4) = 1.58
    assert len(twice) in (5, 6, 7)


def test_all_images_empty(tmp_path: Path, store_kit: Any) -> None:
    store = FeatureStore.open(store_kit.blank(3).fill(tmp_path / "s.zarr"))
    assert len(list(make_run_loader(config_of(), store).epoch(0))) == 1


def test_a_batch_larger_than_the_data_is_the_data(tiny: Any) -> None:
    store = FeatureStore.open(tiny.train)
    loader = loader_of(store, batch_size=10_000, views=("base",))
    assert len(loader.plan(0)) == len(store.buckets("base"))
    assert sum(len(batch.targets) for batch in loader.epoch(0)) == len(store)


def test_augmentation_of_a_config(tiny: Any) -> None:
    store = FeatureStore.open(tiny.train)
    plain = list(make_run_loader(config_of(), store).epoch(0))
    augmented = list(make_run_loader(config_of(augment={"flip": 1.0}), store).epoch(0))
    for before, after in zip(plain, augmented, strict=True):
        assert before.image_ids == after.image_ids
        assert not torch.equal(before.features["C5"], after.features["C5"])


def test_the_option_of_the_command_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from cachedet.cli import app

    (tmp_path / "c.yaml").write_text("seed: 0\n")
    words = [
        "train-heads",
        f"{tmp_path}/c.yaml",
        "--train",
        f"{tmp_path}/s",
        "--run",
        f"{tmp_path}",
    ]
    wrong = CliRunner().invoke(app, [*words, "--residency", "tape"])
    assert wrong.exit_code == 1
    assert "--residency: expected stream, disk, ram, device or auto, got 'tape'" in (wrong.output)
    many = CliRunner().invoke(app, [*words, "--disk-cache", "plenty"])
    assert many.exit_code == 1
    expected = "error: --disk-cache: expected bytes such as 200GB or 1.5TB, got 'plenty'\n"
    assert expected in many.output
    both = CliRunner().invoke(app, [*words, "--residency", "ram", "--disk-cache", "2GB"])
    assert both.exit_code == 1
    assert "disk_cache is the room of residency disk, residency is ram" in both.output
    right = CliRunner().invoke(app, [*words, "--residency", "ram"])
    assert "is not a feature store" in right.output


def test_where_plans_are_alike_each_epoch_has_as_many_batches(tiny: Any) -> None:
    store = FeatureStore.open(tiny.train)
    for views in ((store.views[0],), store.views):
        loader = loader_of(store, views=tuple(views), batch_size=2)
        counts = {len(loader.plan(epoch)) for epoch in range(50)}
        assert len(counts) == 1 or not loader.plans_alike
    assert loader_of(store, views=(store.views[0],)).plans_alike

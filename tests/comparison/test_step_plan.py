"""How many steps a cell takes, against counts by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from cachedet.comparison.step_plan import (
    CellCosts,
    StepPlan,
    plan_steps,
    time_left,
    try_steps,
)
from cachedet.config.run import TrainConfig, load_train_config
from cachedet.errors import InputError
from cachedet.live.modes import TrainingMode, make_training_mode
from cachedet.model import measure_model
from cachedet.store.reader import FeatureStore
from cachedet.training.loop import SessionReport
from cachedet.training.stopping import TimeBudget

CONFIG = Path(__file__).parents[2] / "configs" / "retinanet_fpn_tiny.yaml"
SMALL = ["detector.neck.channels=16", "detector.num_convs=1", "device=cpu"]
TINY = ["detector.levels=[C5]", "detector.neck.num_levels=1"]


def cached_mode(tiny: Any, config: TrainConfig, store: FeatureStore) -> TrainingMode:
    return make_training_mode(
        "cached", config, store=store, images=tiny.paths.images, weights="", total_steps=9
    )


def test_epochs_are_counted(tiny: Any) -> None:
    config = load_train_config(
        CONFIG, [*SMALL, "schedule.batch_size=1", "schedule.accumulate=3", "schedule.epochs=5"]
    )
    store = FeatureStore.open(tiny.train)
    plan = plan_steps(config, store, cached_mode(tiny, config, store), seconds=None)
    assert plan.steps_per_epoch == 3  # 8 batches in threes
    assert plan.steps == 15
    assert plan.fit(config) == config
    assert plan.budget is None


def test_a_budget_is_about_so_many_epochs() -> None:
    config = load_train_config(CONFIG, ["schedule.epochs=50"])
    plan = StepPlan(steps=25, steps_per_epoch=10, seconds=60.0, step_flops=1)
    assert plan.fit(config).schedule.epochs == 3
    assert plan.budget == TimeBudget(seconds=60.0)


def test_a_step_of_a_budget_is_all_its_batches(tiny: Any) -> None:
    """On no machine do a million batches fit into three seconds; of single ones many do."""
    config = load_train_config(
        CONFIG, [*SMALL, *TINY, "schedule.batch_size=1", "schedule.accumulate=1000000"]
    )
    store = FeatureStore.open(tiny.train)
    plan = plan_steps(config, store, cached_mode(tiny, config, store), seconds=3.0)
    assert (plan.steps, plan.steps_per_epoch) == (1, 1)
    assert plan.fit(config).schedule.epochs == 1


def test_plans_are_kept(tmp_path: Path) -> None:
    plan = StepPlan(steps=25, steps_per_epoch=10, seconds=60.0, step_flops=7)
    assert StepPlan.read(tmp_path) is None
    plan.write(tmp_path)
    assert StepPlan.read(tmp_path) == plan
    (tmp_path / "steps.json").write_text("{")
    with pytest.raises(InputError, match="steps.json is damaged .* trained again"):
        StepPlan.read(tmp_path)


def test_costs_of_all_stretches_are_kept(tmp_path: Path) -> None:
    """The most memory; and seconds of the processor at the pace of the steps that are known."""
    stretches = [
        SessionReport(
            reason="SIGTERM", seconds=9.0, step_seconds=8.0, losses=(0.5,) * steps,
            processor_seconds=busy, peak_memory=peak,
        )
        for peak, busy, steps in ((200, 1.0, 2), (300, 2.0, 4), (100, 0.0, 0))
    ]  # fmt: skip
    costs = [CellCosts.keep(tmp_path, stretch) for stretch in stretches]
    assert [each.peak_memory for each in costs] == [200, 300, 300]
    assert [each.seconds_of(10) for each in costs] == [5.0, 5.0, 5.0]
    assert math.isnan(CellCosts().seconds_of(10))
    (tmp_path / "costs.json").write_text("{")
    with pytest.raises(InputError, match="costs.json is damaged .* trained again"):
        CellCosts.keep(tmp_path, stretches[0])


def test_time_left() -> None:
    assert time_left(600, spent=45) == 555
    with pytest.raises(InputError, match="--budget is 30 s, and extracting the features took 31 s"):
        time_left(30, spent=31)


@pytest.mark.parametrize(
    ("path", "changes"),
    [(CONFIG, SMALL), (CONFIG.with_name("faster_rcnn_fpn_tiny.yaml"), ["device=cpu"])],
    ids=["no RoIs", "RoIs"],
)
def test_flops_are_those_of_the_mean_image(tiny: Any, path: Path, changes: list[str]) -> None:
    """Images of two sizes, batches of one: whichever comes first, the mean is the same."""

    def flops(seed: int) -> int:
        config = load_train_config(path, [*changes, "schedule.batch_size=1", f"seed={seed}"])
        store = FeatureStore.open(tiny.train)
        mode = cached_mode(tiny, config, store)
        return plan_steps(config, store, mode, seconds=None).step_flops

    store = FeatureStore.open(tiny.train)
    sizes = {store.bucket_of(row, "base") for row in range(len(store))}
    assert len(sizes) > 1
    of_seeds = [flops(seed) for seed in range(4)]
    assert max(of_seeds) == pytest.approx(min(of_seeds), rel=0.02)


def test_flops_of_a_step_are_those_of_the_model_command(tiny: Any) -> None:
    """Of cached heads, up to the losses, which hold no convolution."""
    config = load_train_config(CONFIG, [*SMALL, "schedule.batch_size=2"])
    store = FeatureStore.open(tiny.train)
    mode = cached_mode(tiny, config, store)
    counted = mode.loader.plan(0)[-1]
    flops, seconds_per_step = try_steps(mode, counted=[counted], seconds=0)
    view, row = store.manifest.views[counted[0, 0]], int(counted[0, 1])
    cost = measure_model(
        config.detector,
        features=store.manifest.spec,
        num_classes=len(store.manifest.categories),
        size_hw=store.bucket_of(row, view),
    )
    assert flops == [pytest.approx(cost.total.step_flops, rel=0.02)]
    assert seconds_per_step == 0

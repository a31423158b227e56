"""A sweep made ready: each process reads the store, alone or beside others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cachedet.config.presets import load_config
from cachedet.config.run import TrainConfig
from cachedet.device import usable_cores
from cachedet.errors import ConfigError, InputError
from cachedet.extract import extract
from cachedet.sweeping.sweep_plan import Objective, SweepConfig
from cachedet.sweeping.task import SweepTask

PRESET = "retinanet_fpn_tiny"


def cpu(**overrides: Any) -> TrainConfig:
    return load_config(PRESET, overrides={"device": "cpu"} | overrides)


def make(tiny: Any, heads: dict[str, TrainConfig], **changes: Any) -> SweepTask:
    values = {"train": str(tiny.train), "val": str(tiny.val), "out": Path("out"), **changes}
    return SweepTask.of(SweepConfig(heads=heads, trials=3, **values))


@pytest.mark.parametrize(
    ("residency", "parallel", "trained"),
    [("auto", 1, "stream"), ("ram", 1, "ram"), ("auto", 2, "stream"), ("ram", 2, "stream")],
)
def test_features_lie_in_memory_once(
    tiny: Any, residency: str, parallel: int, trained: str
) -> None:
    """Those of several processes in the system's cache of files alone."""
    heads = cpu(residency=residency)
    task = make(tiny, {PRESET: heads}, parallel=parallel)
    job = task.job(heads, Path("run"))
    assert job.config.residency == trained
    assert job.threads == (None if parallel == 1 else max(1, (usable_cores() or 1) // 2))
    is_said = any("residency is stream in all trials" in note for note in task.notes())
    assert is_said == (residency == "ram" and parallel == 2)


def test_a_final_run_is_scored_on_what_is_held_out(tiny: Any) -> None:
    task = make(tiny, {PRESET: cpu()})
    trial = task.job(cpu(), Path("run"))
    final = task.job(cpu(), Path("run"), final=True)
    assert (trial.reporting, trial.is_watched) == ((), True)
    assert (final.reporting, final.is_watched) == (task.split.reporting, False)
    assert not {*trial.choosing} & {*final.reporting}


def test_the_longest_trial_that_can_be_drawn(tiny: Any) -> None:
    assert make(tiny, {PRESET: cpu()}).rules.most_epochs == 30
    drawn = make(tiny, {PRESET: cpu()}, params=("schedule.epochs=5..50",))
    assert drawn.rules.most_epochs == 50
    assert drawn.defaults() == {"schedule.epochs": 20}


def test_what_is_set_is_not_searched(tiny: Any) -> None:
    heads = {PRESET: cpu()}
    keys = [each.key for each in make(tiny, heads).space.of_config[PRESET]]
    assert {"schedule.epochs", "schedule.lr", "views.base"} <= {*keys}
    fixed = make(tiny, heads, fixed=("schedule.epochs", "views"))
    left = [key for key in keys if key not in ("schedule.epochs", "views.base")]
    assert [each.key for each in fixed.space.of_config[PRESET]] == left


def test_another_objective_than_the_verdicts_is_said(tiny: Any) -> None:
    task = make(tiny, {PRESET: cpu()}, objective=Objective(figure="ap50"))
    assert "the search chooses by AP50; winner and default are compared by AP" in task.notes()
    assert not any("compared by AP" in note for note in make(tiny, {PRESET: cpu()}).notes())


def test_a_store_without_boxes_teaches_nothing(tiny: Any, tmp_path: Path) -> None:
    content = json.loads(tiny.paths.train.read_text()) | {"annotations": []}
    (tmp_path / "none.json").write_text(json.dumps(content))
    config = tiny.extract_config(tmp_path / "none.zarr", annotations=tmp_path / "none.json")
    extract(config)
    with pytest.raises(InputError, match=r"none.zarr holds no box to learn from \(crowds aside\)"):
        make(tiny, {PRESET: cpu()}, train=str(tmp_path / "none.zarr"))


def test_a_config_that_does_not_fit_is_named(tiny: Any) -> None:
    other = cpu(views=["hflop"])
    with pytest.raises(ConfigError, match="second: views: .* has no 'hflop'; nearest: 'hflip'"):
        make(tiny, {"first": cpu(), "second": other})


def test_the_default_drawn_is_the_default(tiny: Any) -> None:
    """Spelled out in the space's words it is not trained a second time at the end."""
    heads = cpu()
    task = make(tiny, {PRESET: heads})
    own = task.defaults()
    assert own["views.base"] == 1.0
    assert task.configured(PRESET, own) == heads
    other = task.configured(PRESET, own | {"views.base": 2.0})
    assert other.views is not None
    assert other.model_copy(update={"views": None}) == heads

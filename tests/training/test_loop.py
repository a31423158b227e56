"""Sessions with a budget of time: when they end, where their schedule ends, and going on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.config.run import TrainConfig
from cachedet.loading.loader import make_run_loader
from cachedet.store.reader import FeatureStore
from cachedet.train import train
from cachedet.training.checkpoint import load_checkpoint
from cachedet.training.loop import SessionReport, run_session
from cachedet.training.run_folder import RunFolder
from cachedet.training.stopping import TimeBudget
from cachedet.training.trainer import Trainer, make_trainer

CONFIG = TrainConfig.model_validate(
    {
        "detector": {
            "kind": "retinanet", "levels": ["C4", "C5"], "norm": "group", "num_convs": 1,
            "neck": {"kind": "fpn", "channels": 8, "num_levels": 2},
        },
        "schedule": {"batch_size": 4, "lr": 0.01, "warmup_steps": 3, "kind": "cosine"},
        "device": "cpu",
    }
)  # fmt: skip


def make(tiny: Any) -> Trainer:
    """With a plan that is far from what fits into any budget here."""
    torch.manual_seed(0)
    return make_trainer(CONFIG, manifest=FeatureStore.open(tiny.train).manifest, total_steps=10**6)


def spend(tiny: Any, folder: RunFolder, trainer: Trainer, *, seconds: float) -> SessionReport:
    store = FeatureStore.open(tiny.train)
    return run_session(
        CONFIG,
        folder=folder,
        trainer=trainer,
        loader=make_run_loader(CONFIG, store, rank=0, world_size=1),
        manifest=store.manifest,
        validator=None,
        budget=TimeBudget(seconds=seconds),
    )


def test_the_schedule_of_a_budget_ends_with_it(tiny: Any, tmp_path: Path) -> None:
    trainer = make(tiny)
    report = spend(tiny, RunFolder.create(tmp_path / "run"), trainer, seconds=1.5)
    assert report.reason == "budget"
    assert trainer.learning_rate.total_steps == trainer.step == len(report.losses) > 3
    assert trainer.optimizer.param_groups[0]["lr"] < 0.1 * trainer.learning_rate.peak
    assert trainer.seconds == pytest.approx(report.step_seconds)
    assert trainer.seconds >= 1.5


def test_what_is_spent_is_part_of_the_state(tiny: Any, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    first = spend(tiny, folder, make(tiny), seconds=0.3)
    saved = load_checkpoint(folder.last)
    assert saved.seconds == pytest.approx(first.step_seconds)
    trainer = make(tiny)
    trainer.restore(saved)
    second = spend(tiny, folder, trainer, seconds=0.6 + saved.seconds)
    assert second.step_seconds >= 0.6
    assert trainer.seconds == pytest.approx(first.step_seconds + second.step_seconds)
    assert trainer.learning_rate.total_steps == trainer.step
    again = make(tiny)
    again.restore(load_checkpoint(folder.last))
    assert spend(tiny, folder, again, seconds=0.6 + saved.seconds).losses == ()
    assert (again.step, again.seconds) == (trainer.step, trainer.seconds)


def test_whoever_watches_the_validations_may_give_it_up(tiny: Any, tmp_path: Path) -> None:
    """The state is whole then: the run can go on, and ends as one that nobody gave up."""
    config = CONFIG.model_copy(
        update={"schedule": CONFIG.schedule.model_copy(update={"epochs": 3})}
    )
    seen: list[tuple[int, float]] = []

    def watch(epoch: int, scores: Mapping[str, float]) -> bool:
        seen.append((epoch, scores["ap"]))
        return epoch == 2

    part = FeatureStore.open(tiny.val).keep_rows([0, 2])
    stores = {"train_store": tiny.train, "val_store": part}
    given_up = train(config, run=tmp_path / "a", on_validation=watch, **stores)
    assert (given_up.reason, given_up.epochs, given_up.was_interrupted) == ("given_up", 2, False)
    again = train(config, run=tmp_path / "a", resume=True, **stores)
    whole = train(config, run=tmp_path / "b", on_validation=lambda *_: False, **stores)
    assert [epoch for epoch, _ in seen] == [1, 2]
    assert again.losses == whole.losses[-len(again.losses) :]
    assert given_up.step_seconds < again.step_seconds


@pytest.mark.parametrize("resume", [False, True])
def test_killed_before_its_first_checkpoint_a_run_starts_again(
    tiny: Any, tmp_path: Path, resume: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The same command does it, and so does --resume."""
    config = CONFIG.model_copy(update={"max_steps": 1})
    first = train(config, train_store=tiny.train, run=tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    for file in (folder.last, folder.plots / "training.png"):  # a kill leaves neither
        file.unlink()
    assert len(folder.metrics.read_text().splitlines()) == 2
    with caplog.at_level("INFO", logger="cachedet"):
        again = train(config, train_store=tiny.train, run=tmp_path / "run", resume=resume)
    assert again.losses == first.losses
    assert len(folder.metrics.read_text().splitlines()) == 2
    assert ("nothing was saved before the run ended: it starts again" in caplog.messages) == resume

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.config.run import TrainConfig
from cachedet.loading.loader import make_run_loader
from cachedet.store.reader import FeatureStore
from cachedet.train import train
from cachedet.training import thread_pace
from cachedet.training.thread_pace import (
    LEAST_STEPS,
    advise_threads,
    describe_paces,
    measure_paces,
)
from cachedet.training.trainer import make_trainer

CONFIG = TrainConfig.model_validate(
    {
        "detector": {
            "kind": "retinanet", "levels": ["C4", "C5"], "norm": "group", "num_convs": 1,
            "neck": {"kind": "fpn", "channels": 8, "num_levels": 2},
        },
        "schedule": {"batch_size": 4, "lr": 0.01, "epochs": 1},
        "device": "cpu",
    }
)  # fmt: skip


def test_the_faster_number_is_advised_where_it_is_clearly_faster() -> None:
    line = "1 thread: 3.9 steps/s, 2 threads: 1.7; run with OMP_NUM_THREADS=1"
    assert describe_paces({1: 3.9, 2: 1.7}, now=2) == line
    assert describe_paces({1: 1.8, 2: 1.7}, now=2) == ""
    assert describe_paces({1: 1.7, 2: 3.9}, now=2) == ""
    assert "8 threads: 12 steps/s, 16 threads: 4" in describe_paces({1: 3, 8: 12, 16: 4}, now=16)


@pytest.mark.usefixtures("two_threads")
def test_each_number_is_timed_in_turn_and_the_first_round_is_not() -> None:
    times = iter(range(1000))
    tried: list[int] = []

    def clock() -> float:
        """A second a call with one thread, four with two, ten in the first round."""
        return next(times) * {1: 1.0, 2: 4.0}[torch.get_num_threads()]

    paces = measure_paces(lambda: tried.append(torch.get_num_threads()), [1, 2], clock=clock)
    assert tried == [1, 2] * 4
    assert paces == {1: 1.0, 2: 0.25}


@pytest.mark.usefixtures("two_threads")
def test_the_trial_moves_nothing_of_the_run(tiny: Any) -> None:
    """Of short runs there is none."""
    store = FeatureStore.open(tiny.train)
    loader = make_run_loader(CONFIG, store)
    trainer = make_trainer(CONFIG, manifest=store.manifest, total_steps=LEAST_STEPS)
    weights = {name: value.clone() for name, value in trainer.detector.state_dict().items()}
    random = torch.get_rng_state()
    line = advise_threads(trainer, loader)
    assert line == "" or line.endswith("run with OMP_NUM_THREADS=1")
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), random)
    assert all(
        torch.equal(value, weights[name]) for name, value in trainer.detector.state_dict().items()
    )
    assert all(parameter.grad is None for parameter in trainer.detector.parameters())
    trainer.step = 1
    trainer.detector = torch.nn.Identity()  # would fail
    assert advise_threads(trainer, loader) == ""


@pytest.mark.usefixtures("two_threads")
def test_the_run_says_it_once_and_writes_it_down(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(thread_pace, "LEAST_STEPS", 1)
    monkeypatch.setattr(thread_pace, "_FASTER", 0.0)
    with caplog.at_level(logging.INFO, logger="cachedet"):
        train(CONFIG, train_store=tiny.train, run=tmp_path / "run")
    assert sum("run with OMP_NUM_THREADS=" in line for line in caplog.messages) == 1
    assert "run with OMP_NUM_THREADS=" in (tmp_path / "run" / "log.txt").read_text()

"""Steps in a process of their own, and from timed steps to an epoch: by hand, without steps."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import active_children
from typing import Any

import numpy as np
import pytest

from cachedet.config.run import AugmentConfig, TrainConfig
from cachedet.errors import ConfigError
from cachedet.estimation.measured import Memory
from cachedet.estimation.mode_trials import (
    StepJob,
    StepTrial,
    TrialFailedError,
    cached_heads,
    make_job_trainer,
    measure_steps,
    memory_of,
    partial_heads,
    plain_heads,
    time_steps,
    try_mode,
)
from cachedet.estimation.sample import TrialBatches
from cachedet.loading.loader import make_run_loader
from cachedet.store.reader import FeatureStore
from cachedet.training.trainer import make_trainer

CONFIG = TrainConfig.model_validate(
    {
        "detector": {"kind": "retinanet", "neck": {"kind": "fpn", "channels": 16}, "num_convs": 1},
        "schedule": {"batch_size": 2, "optimizer": "adamw", "lr": 1e-4},
        "device": "cpu",
        "residency": "stream",
    }
)
TAKEN = StepTrial(
    numbers=(0, 1, 0), seconds=6.0, waiting=1.5, memory=Memory(resting=100, working=60)
)


@pytest.fixture
def job_of(tiny: Any) -> Callable[..., StepJob]:
    """Makes a job on the store of the generated images, whose batches have 1000, 500, 1000 px."""

    def make(**changes: object) -> StepJob:
        rows = next(iter(FeatureStore.open(tiny.train).buckets("base").values()))
        keys = np.array([[0, row] for row in rows[:2]])
        job = StepJob(
            mode="cached",
            config=CONFIG,
            store=tiny.train,
            images=tiny.paths.images,
            weights=str(tiny.weights),
            batches=TrialBatches(
                warm_up=keys, timed=(keys, keys[:1], keys), pixels=(1000, 500, 1000)
            ),
            seconds=0.2,
            threads=1,
        )
        return replace(job, **changes)  # type: ignore[arg-type]

    return make


def test_memory_of_the_whole_batch() -> None:
    """Only what a step takes grows with its batch: 3 x 60, and 3 x 200 on a device."""
    assert memory_of((100, None), (160, None), 3.0) == Memory(resting=100, working=180)
    memory = memory_of((100, 500), (160, 700), 3.0)
    assert (memory.ram, memory.device) == (280, 1100)


def test_an_epoch_by_pixels(job_of: Callable[..., StepJob]) -> None:
    """Timed were 2,500 pixels in 6 s, 4.5 of them computing; the epoch has 5,000."""
    training, computing = try_mode(
        job_of(), stage="heads", beside={"read": 0.5}, epoch_pixels=5000, take_steps=lambda _: TAKEN
    )
    assert training.phase.seconds == pytest.approx(12.0)
    assert computing == pytest.approx(9.0)
    assert training.phase.stages == {"heads": computing, "read": 0.5}
    assert training.memory == TAKEN.memory


def test_a_mode_that_fails_is_a_result(job_of: Callable[..., StepJob]) -> None:
    def take_steps(job: StepJob) -> StepTrial:
        raise TrialFailedError("memory does not suffice")

    training, computing = try_mode(
        job_of(mode="tuned"), stage="x", beside={}, epoch_pixels=1, take_steps=take_steps
    )
    assert (training.phase, training.memory) == (None, None)
    assert training.failure == "memory does not suffice"
    assert computing == 0.0


def test_plain_heads_have_what_all_modes_can_have() -> None:
    config = TrainConfig.model_validate(
        {
            "seed": 7,
            "augment": {"flip": 0.5},
            "trainable": "classifier",
            "init_from": "x",
            "early_stopping": {"metric": "ap"},
        }
    )
    assert plain_heads(config) == TrainConfig(seed=7, augment=AugmentConfig(flip=0.5))


def test_a_config_that_trains_stages_is_plain_cached_and_partial() -> None:
    stages = {"train": "norms", "batch_norm": "trained"}
    config = TrainConfig.model_validate({"seed": 7, "freeze_at": "C3", "stages": stages})
    assert cached_heads(config) == TrainConfig(seed=7)
    assert partial_heads(config, "C4").freeze_at == "C4"
    assert partial_heads(config, "C4").stages == config.stages
    assert partial_heads(TrainConfig(trainable="all"), "C4").stages == TrainConfig().stages


def test_stages_are_trained_in_a_process_of_their_own(job_of: Callable[..., StepJob]) -> None:
    job = job_of(mode="partial_C4", config=partial_heads(CONFIG, "C4"), seconds=0.0)
    trainer, _ = make_job_trainer(job)
    assert trainer.detector.cut == "C4"
    trial = measure_steps(job)
    assert trial.numbers == (0,)
    assert trial.memory.ram > 50e6


def trainer_and_loader(job: StepJob) -> tuple[Any, Any]:
    store = FeatureStore.open(job.store)
    trainer = make_trainer(job.config, manifest=store.manifest, total_steps=100)
    return trainer, make_run_loader(job.config, store)


def test_the_warm_up_is_not_counted_and_no_file_is_left(
    tiny: Any, job_of: Callable[..., StepJob]
) -> None:
    before = sorted(tiny.train.rglob("*"))
    job = job_of(seconds=0.0)
    trainer, loader = trainer_and_loader(job)
    trial = time_steps(trainer, loader, job)
    assert trial.numbers == (0,)  # out of time after the first
    assert trainer.step == 2
    assert 0 <= trial.waiting <= trial.seconds
    assert trial.memory.device is None
    assert trial.memory.ram >= trial.memory.resting > 0
    assert sorted(tiny.train.rglob("*")) == before


def test_whole_rounds_while_there_is_time(job_of: Callable[..., StepJob]) -> None:
    job = job_of(seconds=1.0)
    trial = time_steps(*trainer_and_loader(job), job)
    assert len(trial.numbers) >= 3
    assert trial.numbers[:3] == (0, 1, 2)


def test_gradients_are_accumulated(job_of: Callable[..., StepJob]) -> None:
    schedule = CONFIG.schedule.model_copy(update={"accumulate": 2})
    job = job_of(seconds=0.0, config=CONFIG.model_copy(update={"schedule": schedule}))
    trainer, loader = trainer_and_loader(job)
    time_steps(trainer, loader, job)
    assert trainer.step == 1


def test_in_a_process_of_its_own(job_of: Callable[..., StepJob]) -> None:
    trial = measure_steps(job_of(mode="tuned"))
    assert len(trial.numbers) >= 1
    assert trial.memory.ram > 50e6
    assert active_children() == []


def test_errors_of_the_users_come_through(job_of: Callable[..., StepJob]) -> None:
    config = CONFIG.model_copy(update={"views": ("jitter",)})
    with pytest.raises(ConfigError, match="has no 'jitter'"):
        measure_steps(job_of(config=config))
    assert active_children() == []


def test_a_process_that_is_killed_had_too_little_memory(job_of: Callable[..., StepJob]) -> None:
    def kill() -> None:
        while not (children := active_children()):
            time.sleep(0.01)
        assert children[0].pid is not None
        os.kill(children[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(TrialFailedError, match="was killed: memory does not suffice"):
        measure_steps(job_of(seconds=60.0))
    killer.join()
    assert active_children() == []

"""From timed steps to an epoch: by hand, with steps that were not taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachedet.config.run import AugmentConfig, TrainConfig
from cachedet.estimation.mode_trials import (
    ModeTrials,
    choose_batches,
    memory_of,
    most_images,
    plain_heads,
)
from cachedet.estimation.sample import BatchShape
from cachedet.estimation.step_process import StepJob, StepTrial, TrialFailedError

HELD = {
    (32, 32): np.array([[0, 0], [0, 1], [1, 0]]),
    (64, 64): np.array([[0, 2]]),
}
EPOCH = [
    *[BatchShape(bucket=(32, 32), images=4) for _ in range(9)],
    BatchShape(bucket=(64, 64), images=2),
]
TAKEN = StepTrial(
    numbers=(0, 1, 0),
    seconds=6.0,
    waiting=1.5,
    resting_nbytes=100,
    ram_nbytes=160,
    device_resting_nbytes=None,
    device_nbytes=None,
)


def test_batches_stand_for_the_epoch() -> None:
    found = choose_batches(EPOCH, HELD, most_images=100)
    assert found.warm_up.tolist() == [[0, 2], [0, 2]]  # the largest
    assert len(found.timed) == 8
    assert sorted(found.pixels) == [4096] * 7 + [8192]
    assert [len(keys) * 32 * 32 for keys in found.timed if keys[0, 1] < 2] == [4096] * 7
    assert found.enlarge == 1.0


def test_of_large_batches_a_part_is_taken() -> None:
    found = choose_batches(EPOCH, HELD, most_images=1)
    assert set(map(len, found.timed)) == {1}
    assert found.enlarge == 2.0


def test_how_many_images_can_be_tried() -> None:
    """6 s over five forwards of 0.05 s: 24."""
    assert most_images(0.05) == 24
    assert most_images(10.0) == 8
    assert most_images(0.0) > 1_000_000


def test_memory_of_the_whole_batch() -> None:
    found = memory_of(TAKEN, 3.0)
    assert (found.resting, found.working, found.ram) == (100, 180, 280)
    assert found.device is None


def test_only_what_a_step_takes_of_a_device_grows_with_its_batch() -> None:
    """500 of weights and held features, and 3 x 200."""
    found = memory_of(replace(TAKEN, device_resting_nbytes=500, device_nbytes=700), 3.0)
    assert found.device == 1100


def trials(steps: Any) -> ModeTrials:
    batches = choose_batches(EPOCH, HELD, most_images=100)
    config = TrainConfig.model_validate(
        {
            "augment": {"flip": 0.5},
            "trainable": "classifier",
            "init_from": "x",
            "early_stopping": {"metric": "ap"},
        }
    )
    return ModeTrials(
        store=Path("trial.zarr"),
        views=("base",),
        batches=batches,
        config=config,
        images=Path("images"),
        weights="none",
        epoch_pixels=61_440,
        seconds=3.0,
        steps=steps,
    )


def test_an_epoch_by_pixels() -> None:
    """What was timed has p pixels in 6 s, 4.5 of them computing; the epoch has 61,440."""
    jobs: list[StepJob] = []

    def steps(job: StepJob) -> StepTrial:
        jobs.append(job)
        return TAKEN

    training_mode = trials(steps)
    training, computing = training_mode.run(
        "cached", residency="ram", step="heads", beside={"read": 0.5}
    )
    pixels = training_mode.batches.pixels
    timed = pixels[0] + pixels[1] + pixels[0]
    assert training.phase is not None
    assert training.phase.seconds == pytest.approx(6.0 / timed * 61_440)
    assert computing == pytest.approx(4.5 / timed * 61_440)
    assert training.phase.stages == {"heads": computing, "read": 0.5}
    assert (jobs[0].config.residency, jobs[0].config.views) == ("ram", ("base",))
    assert jobs[0].config.trainable == "classifier"
    assert jobs[0].seconds == 3.0


def test_the_live_modes_have_what_both_can_have() -> None:
    jobs: list[StepJob] = []

    def steps(job: StepJob) -> StepTrial:
        jobs.append(job)
        return TAKEN

    trials(steps).run("live", residency="stream", step="x", beside={})
    assert jobs[0].config.trainable == "all"
    assert jobs[0].config.init_from is None
    assert jobs[0].config.early_stopping is None
    assert jobs[0].config.augment == AugmentConfig(flip=0.5)


def test_a_mode_that_fails_is_a_result() -> None:
    def steps(job: StepJob) -> StepTrial:
        raise TrialFailedError("memory does not suffice")

    training, computing = trials(steps).run("tuned", residency="stream", step="x", beside={})
    assert (training.phase, training.memory) == (None, None)
    assert training.failure == "memory does not suffice"
    assert computing == 0.0


def test_plain_heads_keep_everything_else() -> None:
    config = TrainConfig.model_validate({"seed": 7, "init_from": "runs/a"})
    assert plain_heads(config) == TrainConfig.model_validate({"seed": 7})

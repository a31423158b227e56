"""Steps in a process of their own: that they are taken, timed and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachedet.config.run import TrainConfig
from cachedet.errors import ConfigError
from cachedet.estimation.step_process import StepJob, TrialFailedError, measure_steps, time_steps
from cachedet.loading.loader import make_run_loader
from cachedet.store.reader import FeatureStore
from cachedet.training.trainer import make_trainer

CONFIG = TrainConfig.model_validate(
    {
        "detector": {
            "kind": "retinanet",
            "neck": {"kind": "fpn", "channels": 16},
            "num_convs": 1,
        },
        "schedule": {"batch_size": 2, "optimizer": "adamw", "lr": 1e-4},
        "device": "cpu",
        "residency": "stream",
    }
)


def job_of(tiny: Any, **changes: object) -> StepJob:
    store = FeatureStore.open(tiny.train)
    rows = next(iter(store.buckets("base").values()))
    keys = np.array([[0, row] for row in rows[:2]])
    job = StepJob(
        mode="cached",
        config=CONFIG,
        store=tiny.train,
        images=tiny.paths.images,
        weights=str(tiny.weights),
        warm_up=(keys,),
        batches=(keys, keys[:1], keys),
        seconds=0.2,
        threads=1,
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def training_mode(job: StepJob) -> tuple[Any, Any]:
    store = FeatureStore.open(job.store)
    trainer = make_trainer(job.config, manifest=store.manifest, total_steps=100)
    return trainer, make_run_loader(job.config, store)


def test_the_warm_up_is_not_counted(tiny: Any) -> None:
    job = job_of(tiny, seconds=0.0)
    trainer, loader = training_mode(job)
    found = time_steps(trainer, loader, job)
    assert found.numbers == (0,)  # out of time after the first
    assert trainer.step == 2
    assert 0 <= found.waiting <= found.seconds
    assert found.device_resting_nbytes is None
    assert found.device_nbytes is None
    assert found.ram_nbytes >= found.resting_nbytes > 0


def test_whole_rounds_while_there_is_time(tiny: Any) -> None:
    job = job_of(tiny, seconds=1.0)
    found = time_steps(*training_mode(job), job)
    assert len(found.numbers) >= 3
    assert found.numbers[:3] == (0, 1, 2)


def test_gradients_are_accumulated(tiny: Any) -> None:
    schedule = CONFIG.schedule.model_copy(update={"accumulate": 2})
    job = job_of(tiny, seconds=0.0, config=CONFIG.model_copy(update={"schedule": schedule}))
    trainer, loader = training_mode(job)
    time_steps(trainer, loader, job)
    assert trainer.step == 1


def test_in_a_process_of_its_own(tiny: Any) -> None:
    found = measure_steps(job_of(tiny, mode="tuned"))
    assert len(found.numbers) >= 1
    assert found.ram_nbytes > 50e6
    assert active_children() == []


def test_errors_of_the_users_come_through(tiny: Any) -> None:
    config = CONFIG.model_copy(update={"views": ("jitter",)})
    with pytest.raises(ConfigError, match="has no 'jitter'"):
        measure_steps(job_of(tiny, config=config))
    assert active_children() == []


def test_a_process_that_is_killed_had_too_little_memory(tiny: Any) -> None:
    def kill() -> None:
        while not (children := active_children()):
            time.sleep(0.01)
        assert children[0].pid is not None
        os.kill(children[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(TrialFailedError, match="was killed: memory does not suffice"):
        measure_steps(job_of(tiny, seconds=60.0))
    killer.join()
    assert active_children() == []


def test_the_cached_process_needs_no_backbone() -> None:
    script = (
        "import sys, cachedet.estimation.step_process\n"
        "assert not any(n.split('.')[0] == 'timm' for n in sys.modules)\n"
        "assert 'cachedet.backbone' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_file_is_left(tiny: Any, tmp_path: Path) -> None:
    before = sorted(tiny.train.rglob("*"))
    job = job_of(tiny, seconds=0.0)
    time_steps(*training_mode(job), job)
    assert sorted(tiny.train.rglob("*")) == before

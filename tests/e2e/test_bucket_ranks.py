"""Two ranks train from a store in a bucket, each through a disk cache of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cachedet.config.run import TrainConfig
from cachedet.distributed.collective import rank
from cachedet.errors import CachedetError
from cachedet.store.copying import copy_store
from cachedet.train import TrainReport, train
from cachedet.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")

CONFIG = TrainConfig.model_validate(
    {
        "detector": {"kind": "retinanet", "neck": {"kind": "fpn", "channels": 8}, "num_convs": 1},
        "schedule": {"epochs": 12, "batch_size": 3, "lr": 0.01, "warmup_steps": 2},
        "augment": {"flip": 0.5},
        "device": "cpu",
        "residency": "stream",
        "eval_every": 6,
        "checkpoint_every_steps": 1,
    }
)


def train_here(given: dict[str, Any]) -> TrainReport | str:
    """A rank's report, or what it failed with; rank 1 may be killed after a few steps."""
    options, folder = given["options"], given["folder"]
    os.environ.update(given["environment"], CACHEDET_DISK_CACHE=str(folder / f"cache{rank()}"))
    if given["kill"] and rank() == 1:
        threading.Thread(target=_die, args=(options["run"],), daemon=True).start()
    try:
        return train(**options)
    except CachedetError as error:
        return f"{type(error).__name__}: {error}"


def _die(run: Path) -> None:
    while not (run / "weights" / "previous.pt").exists():
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module", autouse=True)
def _seldom(thorough: bool) -> None:
    if not thorough:
        pytest.skip("processes of four runs take 25 s")


@pytest.fixture
def given(tiny: Any, s3: Any, tmp_path: Path) -> dict[str, Any]:
    urls = {}
    for name, store in tiny.stores.items():
        urls[name] = s3.new_url(f"{name}.zarr")
        assert copy_store(store, urls[name]).is_whole
    names = ("AWS_", "CACHEDET_REMOTE")
    config = CONFIG.model_copy(update={"residency": "disk", "disk_cache": 10**9})
    s3.requests.clear()
    return {
        "options": {"config": config, **urls, "run": tmp_path / "bucket"},
        "folder": tmp_path,
        "environment": {k: v for k, v in os.environ.items() if k.startswith(names)},
        "kill": False,
    }


@pytest.fixture(scope="module")
def uninterrupted(tiny: Any, ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What two ranks report that train on the folder."""
    folder = tmp_path_factory.mktemp("local")
    options = {"config": CONFIG, **tiny.stores, "run": folder / "run"}
    given = {"options": options, "folder": folder, "environment": {}, "kill": False}
    return ranks.run(train_here, given, world=2)[0]


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("??/*")}


def test_two_ranks_train_from_a_bucket_as_from_a_folder(
    ranks: Any, s3: Any, given: dict[str, Any], uninterrupted: TrainReport
) -> None:
    """Bit for bit; what a rank has read is not asked for again, by no later run either."""
    one, other = ranks.run(train_here, given, world=2)
    assert one.losses == other.losses == uninterrupted.losses
    assert one.best_ap == uninterrupted.best_ap
    chunks = sum(method == "GET" and "/c/" in key for method, key in s3.requests)
    folder = given["folder"]
    assert shards(folder / "cache0").keys() & shards(folder / "cache1").keys()
    s3.requests.clear()
    given["options"]["run"] = folder / "again"
    ranks.run(train_here, given, world=2)
    again = sum(method == "GET" and "/c/" in key for method, key in s3.requests)
    assert again == 0 < chunks


def test_a_killed_rank_and_the_job_started_again(
    ranks: Any, given: dict[str, Any], uninterrupted: TrainReport
) -> None:
    ranks.start(train_here, {**given, "kill": True}, world=2)
    assert -signal.SIGKILL in ranks.statuses()
    run = given["options"]["run"]
    reached = load_checkpoint(run / "weights" / "last.pt").step
    assert 0 < reached < uninterrupted.steps
    given["options"]["resume"] = True
    one, other = ranks.run(train_here, given, world=2)
    assert one.losses == other.losses == uninterrupted.losses[-len(one.losses) :]
    assert one.steps == uninterrupted.steps
    assert one.best_ap == uninterrupted.best_ap

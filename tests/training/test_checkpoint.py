from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.config import TrainConfig
from cachedet.errors import CheckpointError
from cachedet.store.reader import FeatureStore
from cachedet.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cachedet.training.run_folder import RunFolder


@pytest.fixture
def checkpoint(tiny: Any) -> Checkpoint:
    return Checkpoint(
        step=7,
        epoch=1,
        batch=2,
        best_ap=0.25,
        heads={"w": torch.arange(3.0)},
        optimizer={"state": {}, "param_groups": []},
        torch_rng=torch.get_rng_state(),
        config=TrainConfig(seed=9),
        manifest=FeatureStore.open(tiny.train).manifest,
    )


def test_round_trip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", checkpoint)
    found = load_checkpoint(tmp_path / "last.pt")
    assert (found.step, found.epoch, found.batch, found.best_ap) == (7, 1, 2, 0.25)
    assert torch.equal(found.heads["w"], torch.arange(3.0))
    assert torch.equal(found.torch_rng, checkpoint.torch_rng)
    assert found.config == checkpoint.config
    assert found.manifest == checkpoint.manifest
    assert found.categories.names[0] == "disc"
    assert os.listdir(tmp_path) == ["last.pt"]


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/cachedet_payload_ran",)


def test_what_is_no_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(path)
    torch.save({"evil": Payload()}, path)
    with pytest.raises(CheckpointError, match="is damaged or not a checkpoint"):
        load_checkpoint(path)
    assert not Path("/tmp/cachedet_payload_ran").exists()
    torch.save({"other": 1}, path)
    with pytest.raises(CheckpointError, match="it has no format number"):
        load_checkpoint(path)
    torch.save({"format": 2, "cachedet": "9.0"}, path)
    with pytest.raises(CheckpointError, match=r"format 2, .* upgrade to cachedet 9.0"):
        load_checkpoint(path)
    save_checkpoint(path, checkpoint)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(path)


def test_run_folders(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.log("hello")
    assert run.root.joinpath("log.txt").read_text().endswith(" hello\n")
    with pytest.raises(CheckpointError, match="exists already and is not empty"):
        RunFolder.create(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"it has no config.yaml"):
        RunFolder.open(tmp_path / "run")
    assert run.weights("best") == run.best

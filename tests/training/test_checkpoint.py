from __future__ import annotations

import dataclasses
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cachedet.config.run import TrainConfig
from cachedet.errors import CheckpointError, DamagedCheckpointError
from cachedet.store.reader import FeatureStore
from cachedet.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, save_rotating
from cachedet.training.run_folder import RunFolder


@pytest.fixture
def checkpoint(tiny: Any) -> Checkpoint:
    return Checkpoint(
        step=7,
        epoch=1,
        batch=2,
        best_ap=0.25,
        seconds=1.5,
        heads={"w": torch.arange(3.0)},
        average={"w": torch.arange(3.0) / 2},
        optimizer={"state": {}, "param_groups": []},
        scaler={"scale": 1024.0},
        stopping={"metric": "ap", "best": None, "misses": 1},
        epoch_statistics={"images": 3},
        torch_rng=torch.get_rng_state(),
        config=TrainConfig(seed=9),
        manifest=FeatureStore.open(tiny.train).manifest,
    )


def test_round_trip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", checkpoint)
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert (loaded.step, loaded.epoch, loaded.batch, loaded.best_ap) == (7, 1, 2, 0.25)
    assert loaded.seconds == 1.5
    assert torch.equal(loaded.heads["w"], torch.arange(3.0))
    assert torch.equal(loaded.scored_heads["w"], torch.arange(3.0) / 2)
    assert (loaded.scaler, loaded.stopping) == (checkpoint.scaler, checkpoint.stopping)
    assert loaded.epoch_statistics == {"images": 3}
    assert torch.equal(loaded.torch_rng, checkpoint.torch_rng)
    assert loaded.config == checkpoint.config
    assert loaded.manifest == checkpoint.manifest
    assert loaded.categories.names[0] == "disc"
    assert os.listdir(tmp_path) == ["last.pt"]


def test_heads_of_a_live_cell_are_those_of_a_run(checkpoint: Checkpoint) -> None:
    heads = {"neck.w": torch.arange(3.0), "heads.0.w": torch.arange(2.0)}  # a cascade's own names
    plain = dataclasses.replace(checkpoint, heads=heads, average=None)
    assert plain.scored_heads is heads
    whole = {f"heads.{name}": value for name, value in heads.items()}
    live = dataclasses.replace(checkpoint, heads=whole, average=None)
    assert live.scored_heads == heads
    tuned = dataclasses.replace(live, heads={**whole, "backbone.conv.w": torch.arange(1.0)})
    with pytest.raises(CheckpointError, match="trained together with their backbone .* mode tuned"):
        _ = tuned.scored_heads


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_malicious_pickle_never_runs(checkpoint: Checkpoint, tmp_path: Path) -> None:
    proof, path = tmp_path / "ran", tmp_path / "last.pt"
    pickle.loads(pickle.dumps(Payload(proof)))
    assert proof.exists()  # the payload works where it is let
    proof.rmdir()
    everywhere = {name: Payload(proof) for name in ("format", "step", "heads", "config")}
    plain = path.with_name("plain.pt")
    plain.write_bytes(pickle.dumps(Payload(proof)))
    torch.save({"format": 2, **everywhere}, path)
    old = path.with_name("old.pt")
    torch.save(everywhere, old, _use_new_zipfile_serialization=False)
    for hostile in (path, plain, old):
        with pytest.raises(CheckpointError, match="is damaged or not a checkpoint"):
            load_checkpoint(hostile)
    assert not proof.exists()


def test_what_is_no_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(path)
    torch.save({"other": 1}, path)
    with pytest.raises(CheckpointError, match="it has no format number"):
        load_checkpoint(path)
    for number in (3, 1, "2", None):
        torch.save({"format": number, "cachedet": "9.0"}, path)
        message = rf"format {number}, .* reads format 2 only; use cachedet 9.0, which wrote it, or"
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)
    torch.save({"format": 2}, path)
    with pytest.raises(CheckpointError, match="its step is missing or of a wrong type"):
        load_checkpoint(path)
    save_checkpoint(path, checkpoint)
    torch.save({**torch.load(path, weights_only=True), "seconds": "1.5"}, path)
    with pytest.raises(CheckpointError, match="its seconds is missing or of a wrong type"):
        load_checkpoint(path)


def test_every_flipped_byte_is_noticed_or_harmless(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """torch itself reads weights with flipped bits without a word."""
    path = tmp_path / "last.pt"
    weights = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    checkpoint.heads["w"] = weights
    save_checkpoint(path, checkpoint)
    content = path.read_bytes()
    noticed = 0
    for index in np.random.default_rng(0).integers(len(content), size=60).tolist():
        path.write_bytes(content[:index] + bytes([content[index] ^ 64]) + content[index + 1 :])
        try:
            loaded = load_checkpoint(path)
        except DamagedCheckpointError:
            noticed += 1
        else:
            assert torch.equal(loaded.heads["w"], weights)
            assert loaded.step == 7
    assert noticed > 30
    path.write_bytes(content[:-200])
    with pytest.raises(DamagedCheckpointError, match="is damaged"):
        load_checkpoint(path)


def test_the_last_two_are_kept(checkpoint: Checkpoint, tmp_path: Path) -> None:
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for step in (1, 2, 3):
        save_rotating(last, previous, dataclasses.replace(checkpoint, step=step))
        assert load_checkpoint(last).step == step
        assert not previous.exists() or load_checkpoint(previous).step == step - 1
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]


def test_the_last_one_is_there_at_any_moment(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Looked at before every call into the system, as a kill there would leave it."""
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    save_rotating(last, previous, checkpoint)
    os.link(last, previous)  # as a kill between the two renames leaves it
    seen = []

    def look(_: Any, event: str, function: Any) -> None:
        if event == "c_call" and getattr(function, "__module__", "") == "posix":
            seen.append((function.__name__, os.access(last, os.R_OK)))

    sys.setprofile(look)
    try:
        save_rotating(last, previous, checkpoint)
        save_rotating(last, previous, checkpoint)
    finally:
        sys.setprofile(None)
    assert [name for name, _ in seen].count("replace") == 4
    assert all(there for _, there in seen)
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]


def test_a_file_system_without_hard_links_keeps_two_as_well(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for step in (1, 2):
        save_rotating(last, previous, dataclasses.replace(checkpoint, step=step))
    assert (load_checkpoint(last).step, load_checkpoint(previous).step) == (2, 1)


def test_a_checkpoint_that_cannot_be_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "last.pt"
    with pytest.raises(CheckpointError, match=r"cannot write .*last.pt: Not a directory; the sta"):
        save_checkpoint(path, checkpoint)
    with pytest.raises(CheckpointError, match=r"cannot write .*last.pt: Not a directory; the sta"):
        save_rotating(path, path.with_name("previous.pt"), checkpoint)


def test_run_folders(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.log("hello")
    assert run.root.joinpath("log.txt").read_text().endswith(" hello\n")
    with pytest.raises(CheckpointError, match="exists already and is not empty"):
        RunFolder.create(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"it has no config.yaml"):
        RunFolder.open(tmp_path / "run")
    assert run.weights("best") == run.best

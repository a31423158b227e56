"""The commands with a GPU, and processes that train together on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cachedet.cli import app
from cachedet.config.run import TrainConfig, dump_config
from cachedet.train import TrainReport, train
from cachedet.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DETECTOR: dict[str, Any] = {
    "kind": "faster_rcnn", "levels": ["C4", "C5"],
    "neck": {"kind": "fpn", "channels": 8, "num_levels": 2},
    "rpn": {"samples": 16, "train_post_nms": 20, "test_post_nms": 20},
    "roi_head": {"samples": 8, "num_convs": 0, "fc_channels": 8},
}  # fmt: skip
CONFIG = TrainConfig.model_validate(
    {
        "detector": DETECTOR,
        "schedule": {"epochs": 2, "batch_size": 4, "lr": 0.01, "warmup_steps": 2, "clip_norm": 5.0},
        "device": "cuda",
        "eval_every": 1,
    }
)
NCCL = """
from datetime import timedelta
import torch, torch.distributed as dist
from cachedet import collective
torch.cuda.set_device(0)
collective.join(backend="cpu:gloo,cuda:nccl", rank=0, world=1, timeout=timedelta(seconds=60))
for device in ("cpu", "cuda"):
    values = torch.arange(4.0, device=device)
    dist.all_reduce(values)
    assert values.tolist() == [0, 1, 2, 3], values
    parts = [torch.empty(4, dtype=torch.float64, device=device)]
    dist.all_gather(parts, values.double())
    assert parts[0].tolist() == [0, 1, 2, 3]
assert collective.from_first(lambda: "made") == "made"
collective.leave()
print("nccl", torch.cuda.nccl.version())
"""


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def torchrun(folder: Path, *words: object, world: int = 1) -> str:
    """Output of the commands; raises where they fail."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(world), *map(str, words)]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_from_images_to_detections(tiny: Any, tmp_path: Path) -> None:
    """extract, train-heads, eval and predict, each with a GPU."""
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(CONFIG))
    for split, file in (("train", tiny.paths.train), ("val", tiny.paths.val)):
        done = call(
            "extract", "--images", tiny.paths.images, "--annotations", file,
            "--store", tmp_path / f"{split}.zarr", "--backbone", "test_resnet",
            "--weights", tiny.weights, "--image-size", 128, "--views", "base",
            "--device", "cuda", "--json",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
    run = tmp_path / "run"
    done = call(
        "train-heads", config, "--train", tmp_path / "train.zarr", "--val", tmp_path / "val.zarr",
        "--run", run, "--set", "device=cuda", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["reason"] == "finished"
    found = {}
    for device in ("cuda", "cpu"):
        scored = call("eval", run, "--store", tmp_path / "val.zarr", "--device", device, "--json")
        assert scored.exit_code == 0, scored.output
        found[device] = json.loads(scored.stdout)["ap50"]
    assert found["cuda"] == pytest.approx(found["cpu"], abs=0.02)
    done = call(
        "predict", run, tiny.paths.images / "val_00000.jpg", "--out", tmp_path / "drawn",
        "--weights", tiny.weights, "--min-score", 0.0, "--device", "cuda", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    entries = json.loads((tmp_path / "drawn" / "detections.json").read_text())
    assert entries[0]["detections"]


def test_a_device_that_is_not_there_is_said(tiny: Any, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(CONFIG))
    refused = call(
        "train-heads", config, "--train", tiny.train, "--run", tmp_path / "run",
        "--set", "device=cuda:99",
    )  # fmt: skip
    assert refused.exit_code == 1
    assert "device 'cuda:99' cannot be used here" in refused.output


def test_torchrun_with_one_rank(tiny: Any, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(CONFIG))
    torchrun(
        tmp_path, "-m", "cachedet", "train-heads", config, "--train", tiny.train,
        "--val", tiny.val, "--run-folder", tmp_path / "run",
    )  # fmt: skip
    assert load_checkpoint(tmp_path / "run" / "weights" / "last.pt").epoch == 2


def test_more_ranks_than_gpus_are_refused(tiny: Any, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(CONFIG))
    world = torch.cuda.device_count() + 1
    with pytest.raises(AssertionError, match="processes on this machine, .* each needs one of its"):
        torchrun(
            tmp_path, "-m", "cachedet", "train-heads", config, "--train", tiny.train,
            "--run-folder", tmp_path / "run", world=world,
        )  # fmt: skip


def test_a_group_of_one_rank_over_nccl(tmp_path: Path) -> None:
    """Counts travel between CPUs, tensors of the GPU between GPUs."""
    script = tmp_path / "script.py"
    script.write_text(NCCL)
    assert "nccl" in torchrun(tmp_path, script)


def train_here(options: dict[str, Any]) -> TrainReport:
    return train(**options)


def test_two_ranks_share_one_gpu_over_gloo(tiny: Any, ranks: Any, tmp_path: Path) -> None:
    """Not how anybody should run it (nccl refuses), but the code of the ranks on CUDA tensors."""
    options = {"config": CONFIG, "train_store": tiny.train, "val_store": tiny.val}
    alone = train(**options, run=tmp_path / "1")
    one, other = ranks.run(train_here, {**options, "run": tmp_path / "2"}, world=2)
    assert one.losses == other.losses
    assert one.losses[0] == pytest.approx(alone.losses[0], rel=1e-2)
    assert len(one.losses) == len(alone.losses)

"""What appears where: the library is silent, the command line speaks on standard error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cachedet.config.run import TrainConfig, dump_config

CONFIG = TrainConfig.model_validate(
    {
        "detector": {"kind": "retinanet", "neck": {"kind": "fpn", "channels": 8}, "num_convs": 1},
        "schedule": {"epochs": 2, "batch_size": 4, "optimizer": "adamw", "lr": 1e-3},
        "device": "cpu",
    }
)
SCRIPT = """
from pathlib import Path
from cachedet.config.run import load_train_config, make_extract_config
from cachedet.evaluate import Questions, evaluate
from cachedet.extract import extract
from cachedet.train import train

folder = Path({folder!r})
extract(make_extract_config({options!r} | {{"store": folder / "s.zarr"}}))
config = load_train_config(folder / "heads.yaml")
train(config, train_store=folder / "s.zarr", val_store={val!r}, run=folder / "run")
evaluate(folder / "run", store={val!r}, questions=Questions(resamples=5))
"""


def test_a_script_that_calls_the_library_prints_nothing(
    tiny: Any, nursery: Any, tmp_path: Path
) -> None:
    (tmp_path / "heads.yaml").write_text(dump_config(CONFIG))
    options = tiny.extract_config(tmp_path / "s.zarr").model_dump(mode="json")
    script = SCRIPT.format(folder=str(tmp_path), options=options, val=str(tiny.val))
    with nursery.start(script) as process:
        assert process.communicate() == ("", "")
    assert process.returncode == 0
    assert (tmp_path / "run" / "results.json").exists()


def test_the_command_line_shows_progress_and_notes(tiny: Any, nursery: Any, tmp_path: Path) -> None:
    heads, run = tmp_path / "heads.yaml", tmp_path / "run"
    heads.write_text(dump_config(CONFIG))
    words = ["train-heads", heads, "--train", tiny.train, "--val", tiny.val, "--run", run]
    with nursery.start_command(words) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.startswith("learning rate 0.001 for steps of 4 images\n")
    assert f"\n2 epochs, from {heads}\n" in out
    residency, header, *epochs, progress = err.splitlines()
    assert residency.startswith("residency auto: ram, as encoded features need")
    assert header.split() == ["epoch", "lr", "loss", "class", "box", "AP", "AP50", "img/s", "wait"]
    assert [line.split()[0] for line in epochs] == ["1/2", "2/2"]
    assert re.match(r"train: (\d+)/\1  [\d.]+ steps/s  AP ", progress)

"""Runs whose store was relabelled: what they note, what resuming asks for, and what is scored."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cachedet
from cachedet.cli import app
from cachedet.config.run import EvalConfig, TrainConfig
from cachedet.errors import CheckpointError, InputError
from cachedet.evaluate import evaluate
from cachedet.report import report
from cachedet.store.reader import FeatureStore
from cachedet.train import train
from cachedet.training.checkpoint import load_checkpoint
from cachedet.training.run_folder import RunFolder

CONFIG = TrainConfig.model_validate(
    {
        "detector": {
            "kind": "retinanet",
            "neck": {"kind": "fpn", "channels": 8},
            "num_convs": 1,
            "postprocess": {"score_threshold": 0.005},
        },
        "schedule": {"epochs": 2, "batch_size": 3, "optimizer": "adamw", "lr": 0.003},
        "device": "cpu",
        "max_steps": 2,
    }
)
WHOLE = CONFIG.model_copy(update={"max_steps": None})


@dataclass(frozen=True)
class Case:
    """Copies of the tiny stores and of a run that stopped after two steps."""

    train: Path
    val: Path
    run: Path
    files: Path
    data: Any

    def relabel(self, change: Any, *, of: str = "train") -> str:
        """Returns the digest of the labels before."""
        path = self.data.change(getattr(self.data.paths, of), self.files / f"{of}.json", change)
        return cachedet.relabel(getattr(self, of), annotations=path).truth_before

    def resume(self, **options: Any) -> Any:
        config = options.pop("config", WHOLE)
        stores = {"train_store": self.train, "val_store": self.val}
        return train(config, **stores, run=self.run, resume=True, **options)

    @property
    def log(self) -> str:
        return (self.run / "log.txt").read_text()


@pytest.fixture(scope="module")
def stopped(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    train(CONFIG, **tiny.stores, run=run)
    return run


@pytest.fixture
def case(tiny: Any, stopped: Path, tmp_path: Path) -> Case:
    places = {"train": tiny.train, "val": tiny.val, "run": stopped}
    copies = {name: Path(shutil.copytree(at, tmp_path / name)) for name, at in places.items()}
    return Case(**copies, files=tmp_path, data=tiny)


def drop_a_box(values: dict[str, Any]) -> None:
    del values["annotations"][0]


def move_a_box(values: dict[str, Any]) -> None:
    values["annotations"][0]["bbox"][2] += 1


def add_a_class(values: dict[str, Any]) -> None:
    values["categories"].append({"id": 7777, "name": "zebra"})


def test_a_run_goes_on_with_other_labels_only_where_that_is_said(case: Case) -> None:
    before = case.relabel(drop_a_box)
    message = (
        r"cannot resume .*last.pt: the store was relabelled since \(.*: \d+ boxes then, \d+ now\)"
        r".* go on so with --resume --relabelled, or start another --run .* --init-from"
    )
    with pytest.raises(CheckpointError, match=message):
        case.resume()
    done = case.resume(relabelled=True)
    assert done.reason == "finished"
    assert "goes on with other labels than before" in case.log
    now = FeatureStore.open(case.train).manifest.truth_digest
    assert load_checkpoint(RunFolder(case.run).last).manifest.truth_digest == now != before
    noted = json.loads((case.run / "training.json").read_text())
    assert noted["truth_digest"] == now
    assert noted["relabelled"] == [{"until_step": 2, "truth_digest": before}]
    case.resume()  # it is of these labels now; nothing to say
    evaluate(case.run, store=case.val)
    page = report([case.run], resamples=2).markdown.read_text()
    assert f"{now} ({before} until step 2: the store was relabelled)" in page


def test_boxes_that_only_moved(case: Case) -> None:
    case.relabel(move_a_box)
    with pytest.raises(CheckpointError, match="each class has as many boxes as before, but not"):
        case.resume()


def test_samplers_that_look_at_labels(case: Case) -> None:
    case.relabel(drop_a_box)
    config = TrainConfig.model_validate(
        {**WHOLE.model_dump(), "sampling": {"kind": "class_balanced"}}
    )
    shutil.rmtree(case.run)
    stores = {"train_store": case.data.train, "val_store": case.val}
    train(config.model_copy(update={"max_steps": 2}), **stores, run=case.run)
    with pytest.raises(CheckpointError, match="sampling.kind=class_balanced draws images by their"):
        case.resume(config=config, relabelled=True)


def test_other_classes_are_refused(case: Case) -> None:
    case.relabel(add_a_class)
    case.relabel(add_a_class, of="val")
    message = r"other classes than when it was trained: .*zebra.*train anew .*--init-from takes"
    with pytest.raises(CheckpointError, match=message):
        case.resume(relabelled=True)


def test_a_relabelled_validation_is_said(case: Case) -> None:
    case.relabel(move_a_box, of="val")
    case.resume()
    assert "note: " not in case.log
    assert "the validation store has other labels than when the run was last started" in case.log


def test_an_older_run_is_scored_on_corrected_labels(case: Case) -> None:
    last = EvalConfig(weights="last")
    evaluate(case.run, case.val, config=last)
    report([case.run], resamples=2)
    before = case.relabel(move_a_box, of="val")
    message = rf"was scored on other labels than .*val has: {before[:12]} then"
    with pytest.raises(InputError, match=message):
        report([case.run], resamples=2)
    evaluate(case.run, case.val, config=last)
    report([case.run], resamples=2)
    now = FeatureStore.open(case.val).manifest.truth_digest
    assert json.loads((case.run / "results.json").read_text())["truth_digest"] == now


def test_the_option(case: Case) -> None:
    case.relabel(move_a_box)
    config = case.files / "config.yaml"
    shutil.copy(case.run / "config.yaml", config)
    arguments = [
        "train-heads", str(config), "--train", str(case.train), "--val", str(case.val), "--run",
        str(case.run), "--resume", "--set", "max_steps=3",
    ]  # fmt: skip
    runner = CliRunner()
    assert runner.invoke(app, arguments).exit_code == 1
    assert runner.invoke(app, [*arguments, "--relabelled"]).exit_code == 0

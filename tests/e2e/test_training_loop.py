"""Runs that stop and go on, on the tiny store: law L6 with everything a run can hold."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from cachedet.cli import app
from cachedet.config.run import TrainConfig, dump_config
from cachedet.errors import CheckpointError, ConfigError, InputError
from cachedet.evaluate import evaluate
from cachedet.evaluation.subject import load_detector
from cachedet.extract import extract
from cachedet.progress import show_progress
from cachedet.train import TrainReport, train
from cachedet.training.checkpoint import Checkpoint, load_checkpoint
from cachedet.training.run_folder import RunFolder

RETINANET = yaml.safe_load("""
    kind: retinanet
    levels: [C4, C5]
    num_convs: 1
    neck: {kind: fpn, channels: 8, num_levels: 2}
    postprocess: {score_threshold: 0.005}
""")
CASCADE = yaml.safe_load("""
    kind: cascade_rcnn
    levels: [C4, C5]
    neck: {kind: fpn, channels: 8, num_levels: 2}
    rpn: {samples: 16, train_post_nms: 20, test_post_nms: 20}
    roi_head: {samples: 8, num_convs: 0, fc_channels: 8}
    postprocess: {score_threshold: 0.005}
""")
SCHEDULE = yaml.safe_load("""
    {epochs: 3, batch_size: 2, accumulate: 2, ema_decay: 0.9, optimizer: adamw, lr: 0.003,
     warmup_steps: 2, kind: cosine, clip_norm: 5.0}
""")


def make_config(
    detector: dict[str, Any] = RETINANET, *, schedule: dict[str, Any] | None = None, **top: Any
) -> TrainConfig:
    values = {"device": "cpu", "residency": "stream", "eval_every": 2, **top}
    values |= {"detector": detector, "schedule": SCHEDULE | (schedule or {})}
    return TrainConfig.model_validate(values)


def last(run: Path) -> Checkpoint:
    return load_checkpoint(run / "weights" / "last.pt")


def assert_same_state(left: Path, right: Path) -> None:
    """All of two runs' states but the seconds they took, bit for bit."""
    first, second = last(left), last(right)
    assert (first.step, first.epoch, first.batch) == (second.step, second.epoch, second.batch)
    assert first.best_ap == second.best_ap
    assert first.stopping == second.stopping
    assert torch.equal(first.torch_rng, second.torch_rng)
    for name in ("heads", "average"):
        ours, theirs = getattr(first, name), getattr(second, name)
        assert (ours is None) == (theirs is None)
        for key, value in (ours or {}).items():
            assert torch.equal(value, theirs[key]), f"{name} {key}"
    for index, state in first.optimizer["state"].items():
        for key, value in state.items():
            assert torch.equal(value, second.optimizer["state"][index][key])


def scores_in(run: Path) -> list[tuple[str, str]]:
    """(step, AP) of each validation in metrics.csv."""
    with (run / "metrics.csv").open(newline="") as file:
        return [(row["step"], row["val_ap"]) for row in csv.DictReader(file) if row["val_ap"]]


@pytest.fixture(scope="module")
def whole(
    tiny: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainConfig, Path, TrainReport]:
    """A run that nothing interrupted."""
    config = make_config(CASCADE, early_stopping={"metric": "ap50", "patience": 9})
    run = tmp_path_factory.mktemp("whole") / "run"
    report = train(config, **tiny.stores, run=run)
    assert report.reason == "finished"
    return config, run, report


def test_stopped_after_any_step_the_rest_is_the_same(whole: Any, tiny: Any, tmp_path: Path) -> None:
    """Law L6, with EMA, accumulation, early stopping and RoIs drawn at random."""
    config, run, report = whole
    assert report.steps >= 6
    for stop in range(1, report.steps + 1):
        again = tmp_path / f"{stop}"
        first = train(config.model_copy(update={"max_steps": stop}), run=again, **tiny.stores)
        assert first.steps == stop
        assert first.reason == ("max_steps" if stop < report.steps else "finished")
        second = train(config, run=again, resume=True, **tiny.stores)
        assert first.losses + second.losses == report.losses
        assert_same_state(run, again)
        assert scores_in(run) == scores_in(again)


def test_one_process_trains_in_a_folder_and_others_may_look(
    whole: Any, tiny: Any, tmp_path: Path
) -> None:
    config, run, report = whole
    with RunFolder(run).owned():
        for resume in (False, True):
            with pytest.raises(InputError, match=f"process {os.getpid()} on .* trains in"):
                train(config, **tiny.stores, run=run, resume=resume)
        assert evaluate(run, store=tiny.val).ap == report.best_ap
    assert not (run / "train.lock").exists()


def test_stopped_after_every_single_step(whole: Any, tiny: Any, tmp_path: Path) -> None:
    config, run, report = whole
    for stop in range(1, report.steps + 1):
        stopping = config.model_copy(update={"max_steps": stop})
        train(stopping, **tiny.stores, run=tmp_path / "run", resume=stop > 1)
    assert_same_state(run, tmp_path / "run")


def test_steps_beyond_the_end_change_nothing(whole: Any, tiny: Any, tmp_path: Path) -> None:
    config, run, report = whole
    more = config.model_copy(update={"max_steps": 10_000})
    longer = train(more, **tiny.stores, run=tmp_path / "run")
    assert (longer.steps, longer.reason) == (report.steps, "finished")
    assert_same_state(run, tmp_path / "run")
    resumed = train(config, **tiny.stores, run=tmp_path / "run", resume=True)
    assert (resumed.steps, resumed.losses) == (report.steps, ())


def test_the_average_is_what_is_validated_kept_and_scored(whole: Any, tiny: Any) -> None:
    _, run, report = whole
    best = load_checkpoint(run / "weights" / "best.pt")
    scored = load_detector(best, device=torch.device("cpu"))
    for name, value in scored.state_dict().items():
        assert torch.equal(value, best.average[name])
    assert any(not torch.equal(best.heads[name], value) for name, value in best.average.items())
    assert evaluate(run, store=tiny.val).scores.ap == report.best_ap


def words_of(config: TrainConfig, run: Path, tiny: Any, *more: str) -> list[object]:
    """The command without its first word."""
    path = run.with_suffix(".yaml")
    path.write_text(dump_config(config))
    return [
        "train-heads", path, "--train", tiny.train, "--val", tiny.val, "--run", run, *more
    ]  # fmt: skip


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signals here")
def test_a_real_process_stopped_by_signals_goes_on_bit_for_bit(
    tiny: Any, nursery: Any, tmp_path: Path
) -> None:
    """A preemption, then a Ctrl-C."""
    config = make_config(CASCADE, schedule={"epochs": 900, "accumulate": 1}, eval_every=0)
    run, steps = tmp_path / "run", [0]
    for name in ("SIGTERM", "SIGINT"):
        resume = ["--resume"] if run.exists() else []
        words = words_of(config, run, tiny, *resume)
        with nursery.start_command(words, environment={"COLUMNS": "100"}) as process:
            wait_for_epoch_after(run, steps[-1])
            process.send_signal(getattr(signal, name))
            _, errors = process.communicate()
        assert process.returncode == 75, errors
        assert f"{name}: finishing the step and saving" in errors
        assert re.search(
            rf"{name}: saved; continue with\n  cachedet train-heads .*--resume", errors
        )
        steps.append(last(run).step)
        assert steps[-1] > steps[-2]
    to_the_same_step = config.model_copy(update={"max_steps": steps[-1] + 5})
    train(to_the_same_step, run=run, resume=True, **tiny.stores)
    train(to_the_same_step, run=tmp_path / "whole", **tiny.stores)
    assert_same_state(tmp_path / "whole", run)
    assert "ended at step" in (run / "log.txt").read_text()


def wait_for_epoch_after(run: Path, step: int) -> None:
    """Until an epoch has ended that began after `step` steps."""
    deadline = time.monotonic() + 300  # a loaded machine takes long to import torch
    while time.monotonic() < deadline:
        time.sleep(0.01)
        if (run / "weights" / "last.pt").exists() and last(run).step > step:
            return
    raise AssertionError("no epoch was finished in time")


def test_a_signal_in_a_validation_leaves_the_epoch_open(tiny: Any, tmp_path: Path) -> None:
    """What counts the misses must not count the epoch twice."""
    config = make_config(
        schedule={"epochs": 2}, eval_every=1, early_stopping={"metric": "loss", "patience": 9}
    )
    train(config, run=tmp_path / "whole", **tiny.stores)
    run, fired = tmp_path / "run", []

    def send_once(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_name == "detect_store" and not fired:
            fired.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    sys.setprofile(send_once)
    try:
        report = train(config, run=run, **tiny.stores)
    finally:
        sys.setprofile(None)
    assert (report.reason, report.epochs, report.was_interrupted) == ("SIGTERM", 0, True)
    assert last(run).batch > 0
    assert scores_in(run) == []
    train(config, run=run, resume=True, **tiny.stores)
    assert_same_state(tmp_path / "whole", run)
    assert scores_in(run) == scores_in(tmp_path / "whole")


def test_a_damaged_last_state_is_replaced_by_the_one_before(tiny: Any, tmp_path: Path) -> None:
    config, run = make_config(), tmp_path / "run"
    train(config, run=tmp_path / "whole", **tiny.stores)
    stopping = config.model_copy(update={"max_steps": 5, "checkpoint_every_steps": 1})
    train(stopping, run=run, **tiny.stores)
    path = run / "weights" / "last.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    train(config, run=run, resume=True, **tiny.stores)
    log = (run / "log.txt").read_text()
    assert re.search(r"last.pt is damaged .*; going on from previous.pt, step 4", log)
    assert (run / "weights" / "last.pt.damaged").read_bytes() == bytes(content)
    assert_same_state(tmp_path / "whole", run)


def test_no_whole_state_at_all(tiny: Any, tmp_path: Path) -> None:
    config, run = make_config(max_steps=2, checkpoint_every_steps=1), tmp_path / "run"
    train(config, train_store=tiny.train, run=run)
    weights = run / "weights"
    (weights / "last.pt").unlink()  # a process died between the two renames
    report = train(config, train_store=tiny.train, run=run, resume=True)
    assert report.steps == 2
    assert "last.pt is missing; going on from previous.pt" in (run / "log.txt").read_text()
    for name in ("last.pt", "previous.pt"):
        (weights / name).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"last.pt is damaged .* nor can the one before it"):
        train(config, train_store=tiny.train, run=run, resume=True)
    (weights / "previous.pt").unlink()
    with pytest.raises(CheckpointError, match=r"there is no previous.pt before it; start again"):
        train(config, train_store=tiny.train, run=run, resume=True)
    (weights / "last.pt").unlink()
    with pytest.raises(CheckpointError, match="has no saved state: the run ended before its first"):
        train(config, train_store=tiny.train, run=run, resume=True)


def test_checkpoints_by_steps_and_by_the_clock(tiny: Any, tmp_path: Path) -> None:
    """After 7 steps of one epoch without an end the last state is the 6th; and a clock is heard."""
    config = make_config(schedule={"accumulate": 1, "batch_size": 1}, eval_every=0)
    by_steps = config.model_copy(update={"checkpoint_every_steps": 3, "max_steps": 7})
    train(by_steps, train_store=tiny.train, run=tmp_path / "steps")
    assert load_checkpoint(tmp_path / "steps" / "weights" / "previous.pt").step == 6
    by_clock = config.model_copy(update={"checkpoint_every_seconds": 1e-6, "max_steps": 4})
    train(by_clock, train_store=tiny.train, run=tmp_path / "clock")
    assert load_checkpoint(tmp_path / "clock" / "weights" / "previous.pt").step == 3
    never = config.model_copy(update={"checkpoint_every_seconds": 0.0, "max_steps": 4})
    train(never, train_store=tiny.train, run=tmp_path / "never")
    assert not (tmp_path / "never" / "weights" / "previous.pt").exists()


def test_half_written_files_of_dead_processes_go(tiny: Any, nursery: Any, tmp_path: Path) -> None:
    config, run = make_config(max_steps=1), tmp_path / "run"
    train(config, train_store=tiny.train, run=run)
    script = (
        "from pathlib import Path; from cachedet.store.files.durable import temporary_path; "
        f"temporary_path(Path({str(run / 'weights' / 'last.pt')!r})).write_bytes(b'half')"
    )
    with nursery.start(script) as process:
        assert process.wait() == 0
    assert len(list((run / "weights").glob("*.tmp"))) == 1
    train(config, train_store=tiny.train, run=run, resume=True)
    assert list((run / "weights").glob("*.tmp")) == []


@pytest.mark.parametrize("metric", ["ap", "loss"])
def test_early_stopping(tiny: Any, tmp_path: Path, metric: str) -> None:
    """A learning rate of nearly nothing: no metric can improve by a half."""
    config = make_config(
        schedule={"epochs": 30, "lr": 1e-12},
        eval_every=1 if metric == "ap" else 10,
        early_stopping={"metric": metric, "patience": 3, "min_delta": 0.5},
    )
    report = train(config, run=tmp_path / "run", **tiny.stores)
    assert (report.reason, report.epochs, report.stopped_early) == ("early_stopping", 4, True)
    expected = 4 if metric == "ap" else 1  # the last epoch is validated whatever eval_every says
    assert len(scores_in(tmp_path / "run")) == expected
    log = (tmp_path / "run" / "log.txt").read_text()
    unit = "validations" if metric == "ap" else "epochs"
    assert re.search(rf"stopped early: {metric} was best at .* in the last 3 {unit}", log)
    again = train(config, run=tmp_path / "run", resume=True, **tiny.stores)
    assert (again.reason, again.losses) == ("early_stopping", ())
    patient = config.early_stopping.model_copy(update={"patience": 5})
    more = config.model_copy(update={"early_stopping": patient})
    report = train(more, run=tmp_path / "run", resume=True, **tiny.stores)
    assert (report.reason, report.epochs) == ("early_stopping", 6)


def test_stage_2_retunes_the_classifier_of_stage_1(tiny: Any, tmp_path: Path) -> None:
    """PAPER 1.7; the average of the first run is where the second starts."""
    train(make_config(CASCADE), run=tmp_path / "one", **tiny.stores)
    stage_2 = make_config(
        CASCADE, init_from=str(tmp_path / "one"), trainable="classifier", schedule={"lr": 1e-2}
    )
    report = train(stage_2, run=tmp_path / "two", **tiny.stores)
    before = load_checkpoint(tmp_path / "one" / "weights" / "best.pt").scored_heads
    for state in (last(tmp_path / "two").heads, last(tmp_path / "two").average):
        moved = {name for name, value in state.items() if not torch.equal(value, before[name])}
        assert moved == {f"heads.{n}.class_logits.{kind}" for n in range(3)
                         for kind in ("weight", "bias")}  # fmt: skip
    assert report.parameters == sum(
        before[f"heads.{n}.class_logits.{kind}"].numel()
        for n in range(3)
        for kind in ("weight", "bias")
    )
    assert "weights of" in (tmp_path / "two" / "log.txt").read_text()
    train(stage_2.model_copy(update={"max_steps": 2}), run=tmp_path / "cut", **tiny.stores)
    train(stage_2, run=tmp_path / "cut", resume=True, **tiny.stores)
    assert_same_state(tmp_path / "two", tmp_path / "cut")


def test_init_from_that_does_not_fit_leaves_no_folder(tiny: Any, tmp_path: Path) -> None:
    train(make_config(max_steps=1), train_store=tiny.train, run=tmp_path / "one")
    source = str(tmp_path / "one" / "weights" / "last.pt")
    with pytest.raises(CheckpointError, match="detector.kind was retinanet, is cascade_rcnn"):
        train(make_config(CASCADE, init_from=source), train_store=tiny.train, run=tmp_path / "two")
    more = tiny.change(
        tiny.paths.train,
        tmp_path / "more.json",
        lambda content: content["categories"].append({"id": 77, "name": "zebra"}),
    )
    extract(tiny.extract_config(tmp_path / "s.zarr", annotations=more))
    with pytest.raises(CheckpointError, match=r"has 10 classes, the store 11 .* here: \['zebra'\]"):
        train(make_config(init_from=source), train_store=tmp_path / "s.zarr", run=tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_logs(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, run = make_config(schedule={"accumulate": 1}, tensorboard=True), tmp_path / "run"
    train(config.model_copy(update={"max_steps": 3}), run=run, **tiny.stores)
    with show_progress():
        report = train(config, run=run, resume=True, **tiny.stores)
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) >= {"images_per_second", "waiting_share", "val_ap75", "loss_box"}
    first = rows[0]
    assert (first["step"], first["epoch"]) == ("1", "0")
    assert float(first["loss"]) == pytest.approx(
        float(first["loss_class"]) + float(first["loss_box"])
    )
    assert 0 <= float(first["waiting_share"]) <= 1
    assert float(first["images_per_second"]) > 0
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    scores = events.Scalars("validation/ap")
    assert scores[-1].step == report.steps
    assert scores[-1].value == pytest.approx(float(rows[-1]["val_ap"]))
    assert events.Scalars("training/loss")[0].value == pytest.approx(float(first["loss"]))
    printed = capsys.readouterr()
    assert printed.out == ""
    for text in (printed.err, (run / "log.txt").read_text()):
        assert re.search(r"  epoch +lr +loss +class +box +AP +AP50 +img/s +wait", text)
        lines = re.findall(r"\s3/3 +\S+e-\d+ +[\d.]+ +[\d.]+ +[\d.]+ +0.\d{3} +0.\d{3} .*%", text)
        assert len(lines) == 1
    assert "on cpu, float32" in (run / "log.txt").read_text()


def test_tensorboard_that_is_missing_is_said_before_anything_is_made(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # Python refuses to import it
    with pytest.raises(ConfigError, match=r"tensorboard: true needs .*'cachedet\[tensorboard\]'"):
        train(make_config(tensorboard=True), train_store=tiny.train, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_without_boxes(tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They teach what background is, which is said; AP on them is undefined, which is refused."""
    caplog.set_level("INFO", logger="cachedet")
    empty = tiny.change(
        tiny.paths.train, tmp_path / "empty.json", lambda content: content["annotations"].clear()
    )
    store = tmp_path / "e.zarr"
    extract(tiny.extract_config(store, annotations=empty))
    for name, detector in (("r", RETINANET), ("c", CASCADE)):
        stores = {"train_store": store, "val_store": tiny.val}
        report = train(make_config(detector), **stores, run=tmp_path / name)
        assert report.reason == "finished"
        assert report.losses[-1] < report.losses[0]
        assert "note: no training image holds a box" in caplog.text
        caplog.clear()
    message = "validation store .*e.zarr holds no boxes .* leave --val"
    with pytest.raises(ConfigError, match=message):
        train(make_config(), train_store=tiny.train, val_store=store, run=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_settings_that_cannot_work(tiny: Any, tmp_path: Path) -> None:
    refused: dict[str, dict[str, Any]] = {
        r"accumulate is 9, epoch 0 has only \d batches: set sched": {"schedule": {"accumulate": 9}},
        "early_stopping on ap needs a validation store: give --v": {"early_stopping": {}},
        "precision fp16 is not there on device cpu": {"precision": "fp16"},
    }
    for message, changes in refused.items():
        with pytest.raises(ConfigError, match=message):
            train(make_config(**changes), train_store=tiny.train, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_starts_from_another_run(tiny: Any, tmp_path: Path) -> None:
    train(make_config(), **tiny.stores, run=tmp_path / "one")
    arguments = [str(word) for word in words_of(make_config(), tmp_path / "two", tiny)]
    options = ["--init-from", str(tmp_path / "one"), "--set", "trainable=classifier", "--json"]
    done = CliRunner().invoke(app, [*arguments, *options])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["reason"] == "finished"
    assert report["epochs"] == 3
    written = yaml.safe_load((tmp_path / "two" / "config.yaml").read_text())
    assert (written["init_from"], written["trainable"]) == (str(tmp_path / "one"), "classifier")


def test_training_in_another_thread_leaves_signals_alone(tiny: Any, tmp_path: Path) -> None:
    """As in a notebook's worker."""
    reports: list[TrainReport] = []

    def work() -> None:
        reports.append(train(make_config(max_steps=1), train_store=tiny.train, run=tmp_path / "r"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reports[0].steps == 1
    shutil.rmtree(tmp_path / "r")

"""A whole sweep: it searches, is killed and goes on, and says what its winner is worth."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cachedet.cli import app
from cachedet.config.run import TrainConfig, load_train_config
from cachedet.errors import ConfigError, InputError
from cachedet.reporting.scored_run import read_runs
from cachedet.series.own_process import start_process
from cachedet.sweep import sweep
from cachedet.sweeping.sweep_folder import SweepFolder
from cachedet.sweeping.sweep_plan import Objective, SweepConfig
from cachedet.sweeping.sweep_results import SweepReport

pytest.importorskip("optuna", reason="pip install 'cachedet[sweep]'")
CONFIGS = Path(__file__).parents[1] / "configs"
PRESET = "retinanet_fpn_tiny"
SMALL = (
    "detector.neck.channels=8", "device=cpu", "schedule.epochs=2",
    "eval_every=1", "detector.postprocess.score_threshold=0.001",
)  # fmt: skip
PARAMS = ("schedule.lr=log:1e-4..1e-2", "detector.neck.channels=8,16", "augment.flip=0..0.5")


def heads(*overrides: str) -> TrainConfig:
    small = [*SMALL, "detector.num_convs=1", *overrides]
    return load_train_config(CONFIGS / "retinanet_fpn_tiny.yaml", small)


def two_stages() -> TrainConfig:
    small = [*SMALL, "detector.roi_head.fc_channels=8"]
    return load_train_config(CONFIGS / "faster_rcnn_fpn_tiny.yaml", small)


def make(tiny: Any, out: Path, **changes: Any) -> SweepConfig:
    values: dict[str, Any] = {
        "heads": {PRESET: heads()},
        "train": str(tiny.train),
        "val": str(tiny.val),
        "out": out,
        "trials": 3,
        "params": PARAMS,
        "resamples": 50,
        "final_seeds": 2,
    }
    return SweepConfig(**values | changes)


def what_was_tried(report: SweepReport) -> list[Any]:
    """All but what the clock says."""
    return [(t.number, t.state, t.values, t.objectives, t.curve) for t in report.trials]


@pytest.fixture(scope="module")
def whole(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepConfig, SweepReport]:
    config = make(tiny, tmp_path_factory.mktemp("sweep") / "out")
    return config, sweep(config)


def test_it_ends_with_a_verdict(whole: tuple[SweepConfig, SweepReport]) -> None:
    config, report = whole
    assert len(report.trials) == 3
    first = report.trials[0]  # the default, as far as the space holds it
    assert first.values["schedule.lr"] == config.heads[PRESET].schedule.lr
    assert first.values["detector.neck.channels"] == 8
    assert report.best == (report.winner,)
    assert report.trials[report.winner].objectives[0] == max(
        trial.objectives[0] for trial in report.trials if trial.objectives
    )
    assert (report.choosing, report.reporting) == (2, 2)
    assert report.verdict is not None
    assert report.verdict.images == 2
    assert "only 2 validation images report" in report.notes[0]
    sides = {run.trial for run in report.finals}
    assert sides == {None, report.winner} or report.verdict.judgement == "default"
    assert {run.seed for run in report.finals} == {1, 2}  # the search had seed 0
    assert json.loads((config.out / "sweep.json").read_text()) == report.to_json()
    page = report.page.read_text()
    assert page.count('<th scope="row">trial ') >= 3
    assert report.verdict.describe() in page
    assert "What to try next" in report.page.with_suffix(".md").read_text()


def test_trials_are_run_folders(whole: tuple[SweepConfig, SweepReport]) -> None:
    config, report = whole
    assert report.winner is not None
    trial = report.trials[report.winner]
    trained = load_train_config(trial.run / "config.yaml")
    assert trained.schedule.lr == pytest.approx(trial.values["schedule.lr"])
    assert trained.residency == "stream"
    assert trial.run == config.out / "trials" / f"{trial.number:04d}"
    (run,) = read_runs([report.finals[0].run])
    assert run.results["ap"] == report.finals[0].ap


def test_some_are_given_up(whole: tuple[SweepConfig, SweepReport]) -> None:
    """By successive halving; a trial that is whole never is."""
    _, report = whole
    assert report.count("pruned") > 0
    for trial in report.trials:
        assert (len(trial.curve) < 2) == (trial.state == "pruned")


def test_again_it_reads_and_trials_can_be_added(
    whole: tuple[SweepConfig, SweepReport], tmp_path: Path
) -> None:
    config, report = whole
    shutil.copytree(config.out, tmp_path / "out")
    moved = replace(config, out=tmp_path / "out")
    ended: list[int] = []
    again = sweep(moved, on_trial=lambda trial: ended.append(trial.number))
    assert ended == []
    assert what_was_tried(again) == what_was_tried(report)
    assert again.verdict == report.verdict
    more = sweep(replace(moved, trials=4), on_trial=lambda trial: ended.append(trial.number))
    assert ended == [3]
    assert what_was_tried(more)[:3] == what_was_tried(report)


def test_the_command_prints_a_table_a_verdict_and_json(
    whole: tuple[SweepConfig, SweepReport], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, report = whole
    shutil.copytree(config.out, tmp_path / "out")
    words = ["sweep", "retinanet_fpn_tiny", "--train", config.train, "--val", config.val]
    words += ["--out", str(tmp_path / "out"), "--trials", "3", "--parallel", "auto"]
    words += [word for text in PARAMS for word in ("--param", text)]
    words += [word for text in (*SMALL, "detector.num_convs=1") for word in ("--set", text)]
    app(words, standalone_mode=False)
    printed = capsys.readouterr().out
    assert "best trials" in printed
    assert "sweep.html" in printed
    assert f"final trial {report.winner}, seed 3: AP" in printed
    assert "2 images chose, 2 report" in " ".join(printed.split())
    app([*words, "--json"], standalone_mode=False)
    values = json.loads(capsys.readouterr().out)
    assert values["winner"] == report.winner
    assert values["verdict"]["images"] == 2
    with pytest.raises(SystemExit):
        app([*words, "--budget", "1h"], standalone_mode=False)
    assert "a sweep ends by --trials or by --budget" in capsys.readouterr().err


def run(config: SweepConfig) -> None:
    sweep(config)


@pytest.mark.thorough
def test_killed_again_and_again_it_ends_alike(
    whole: tuple[SweepConfig, SweepReport], tmp_path: Path
) -> None:
    """SIGKILL at any moment: between trials, in a training, in the final ones."""
    config, report = whole
    killed = replace(config, out=tmp_path / "out")
    for number in range(20):
        process = start_process(run, killed)
        journal, before = killed.out / "study.journal", _size(killed.out / "study.journal")
        until = time.monotonic() + 30
        while process.is_alive() and _size(journal) < before + 150 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.01 * (number % 5))
        process.kill()
        process.join()
    ended = sweep(killed)
    assert what_was_tried(ended) == what_was_tried(report)
    assert [run.ap for run in ended.finals] == [run.ap for run in report.finals]


def test_no_sweep_inside_a_store(tiny: Any) -> None:
    out = Path(tiny.train) / "out"
    with pytest.raises(InputError, match=r"--out .* lies inside the feature store .*another --out"):
        sweep(make(tiny, out))
    assert not out.exists()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.mark.thorough
def test_a_signal_saves_and_the_same_call_goes_on(
    whole: tuple[SweepConfig, SweepReport], tmp_path: Path
) -> None:
    config, report = whole
    stopped = replace(config, out=tmp_path / "out", final_seeds=1)
    ended = sweep(stopped, on_trial=lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert (ended.interrupted_by, ended.verdict) == ("SIGTERM", None)
    assert len(ended.trials) < 3
    assert what_was_tried(sweep(stopped)) == what_was_tried(report)


@pytest.mark.thorough
def test_two_configs_two_objectives_two_processes(tiny: Any, tmp_path: Path) -> None:
    config = make(
        tiny,
        tmp_path / "out",
        heads={"one": heads(), "two": two_stages()},
        params=("schedule.lr=log:1e-3..1e-2", "detector.rpn.box_weight=1..9"),
        objective=Objective(figure="ar100", seconds=True),
        pruner="none",
        parallel=2,
        trials=2,
        final_seeds=1,
    )
    report = sweep(config)
    assert [trial.state for trial in report.trials] == ["complete"] * 2
    assert all(len(trial.objectives) == 2 for trial in report.trials)
    assert {name: len(params) for name, params in report.space.items()} == {"one": 1, "two": 2}
    assert set(report.best) >= {report.winner}
    assert report.parallel == 2


@pytest.mark.thorough
def test_a_trial_that_fails_is_recorded_and_the_others_go_on(tiny: Any, tmp_path: Path) -> None:
    params = ("schedule.lr=1e-3,1e38", "schedule.warmup_steps=0,1")
    config = make(tiny, tmp_path / "out", params=params, trials=4, final_seeds=1)
    report = sweep(replace(config, sampler="random"))
    failed = [trial for trial in report.trials if trial.state == "failed"]
    assert 0 < len(failed) < 4
    assert all("not finite" in trial.error for trial in failed)
    assert report.verdict is not None


def test_where_all_fail_it_says_once_why(tiny: Any, tmp_path: Path) -> None:
    never = {PRESET: heads("schedule.lr=1e37", "schedule.warmup_steps=0")}
    config = make(tiny, tmp_path / "out", heads=never, params=("schedule.lr=1e37,1e38",), trials=9)
    words = "no trial came to its end: 5 of 5 failed, the first, the default, because: "
    for _ in range(2):  # again it is said again, and nothing more is tried
        with pytest.raises(InputError, match=words):
            sweep(config)
    page = (tmp_path / "out" / "sweep.html").read_text()
    assert "5 of 5 trials failed" in page
    assert "the figures above" not in page
    assert "--trials 40" not in page
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["winner"] is None


def test_the_default_is_trained_first_wherever_the_search_lies(tiny: Any, tmp_path: Path) -> None:
    config = make(
        tiny,
        tmp_path / "out",
        params=("schedule.lr=5e-3..6e-3", "detector.neck.channels=8,16"),
        trials=2,
        final_seeds=1,
    )
    report = sweep(config)
    assert report.trials[0].values == {"detector.neck.channels": 8}
    kept = load_train_config(report.trials[0].run / "config.yaml")
    assert kept.schedule.lr == config.heads[PRESET].schedule.lr
    assert "lr=0.0015 is not among what is searched (schedule.lr=0.005..0.006)" in report.notes[1]
    assert 5e-3 <= report.trials[1].values["schedule.lr"] <= 6e-3


def test_what_the_journal_lost_is_read_from_the_runs(
    whole: tuple[SweepConfig, SweepReport], tmp_path: Path
) -> None:
    """Killed between the last validation and what the journal was to say of it."""
    config, report = whole
    shutil.copytree(config.out, tmp_path / "out")
    journal = tmp_path / "out" / "study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    reported = [at for at, line in enumerate(lines) if b'"intermediate_value"' in line]
    journal.write_bytes(b"".join(lines[: reported[0]]))  # the first trial's run is whole
    for later in ("0001", "0002"):
        shutil.rmtree(tmp_path / "out" / "trials" / later)
    assert what_was_tried(sweep(replace(config, out=tmp_path / "out"))) == what_was_tried(report)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": None}, "ends by --trials or by --budget"),
        ({"budget": 60.0}, "ends by --trials or by --budget"),
        ({"holdout": 1.0}, "--holdout expects a share between 0 and 1"),
        ({"holdout": 0.01}, "leaves the part that is to report with 0 images and no box"),
        ({"params": ("schedule.lrr=0..1",)}, r"--param schedule.lrr.*unknown key.*nearest: 'lr'"),
        ({"params": ("schedule.epochs=0.5..3",)}, "--param schedule.epochs.*a whole number"),
        ({"params": ("views.hflop=0.5..2",)}, "no 'hflop'; nearest: 'hflip'"),
        (
            {"params": ("freeze_at=null,C9",)},
            "--param freeze_at=null,C9: freeze_at expects",
        ),
        ({"params": ("schedule.lr=0..1",)}, "--param schedule.lr: expected more than 0"),
        (
            {"params": ("detector.neck.kind=fpn,nasfpn",)},
            "--param detector.neck.kind: 'nasfpn' has other keys .*; give a config of each kind",
        ),
        (
            {"objective": Objective(figure="ap_large")},
            "--objective ap_large: the validation images that choose have no such boxes",
        ),
    ],
)
def test_what_is_refused_before_anything_is_made(
    tiny: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((InputError, ConfigError), match=message):
        sweep(make(tiny, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"seed": 5, "heads": {PRESET: heads("seed=5")}},
            "holds another sweep: seed was 0, is 5. Give",
        ),
        (
            {"heads": {PRESET: heads(), "other": heads()}},
            "configs were .*_tiny, are .*_tiny, other",
        ),
        (
            {"heads": {PRESET: heads("schedule.momentum=0.5")}},
            "momentum was 0.9, is 0.5",
        ),
        ({"params": PARAMS[:1]}, "space.retinanet_fpn_tiny was .*Give the same options to go on"),
    ],
)
def test_a_folder_is_of_one_sweep(
    whole: tuple[SweepConfig, SweepReport], changes: dict[str, Any], message: str
) -> None:
    config, _ = whole
    with pytest.raises(InputError, match=message):
        sweep(replace(config, **changes))


def test_other_stores_versions_and_folders_are_refused(
    whole: tuple[SweepConfig, SweepReport], tiny: Any, tmp_path: Path
) -> None:
    config, _ = whole
    shutil.copytree(config.out, tmp_path / "out")
    settings = tmp_path / "out" / "settings.json"
    kept = json.loads(settings.read_text())
    moved = replace(config, out=tmp_path / "out")
    for changed, words in (
        ({"optuna": "other"}, "another sweep: optuna was other, is "),
        ({"train": "other"}, "another sweep: --train is another store than at its beginning. Give"),
        ({"val_labels": "other"}, "another sweep: the annotations in --val are others. Give"),
        ({"heads": {"mine": {}}}, f"another sweep: its configs were mine, are {PRESET}. Give"),
    ):
        settings.write_text(json.dumps(kept | changed))
        with pytest.raises(InputError, match=words):
            sweep(moved)
    for foreign in ({}, kept | {"heads": [PRESET]}, kept | {"heads": {PRESET: 1}}):
        settings.write_text(json.dumps(foreign))
        with pytest.raises(InputError, match="holds other things than a sweep"):
            sweep(moved)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "settings.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match=r"holds other things than a sweep: settings.json is not"):
        sweep(replace(config, out=tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["settings.json"]
    (tmp_path / "mine" / "features").mkdir()
    with pytest.raises(InputError, match="mine holds a comparison; choose another --out"):
        sweep(replace(config, out=tmp_path / "mine"))
    settings.unlink()
    with pytest.raises(InputError, match="holds other things than a sweep .*final"):
        sweep(moved)
    with (config.out / "sweep.lock").open("w") as lock:
        lock.write("mine")
    try:
        with pytest.raises(InputError, match="is no lock of cachedet's"):
            sweep(config)
    finally:
        (config.out / "sweep.lock").unlink()


def test_two_sweeps_in_one_folder(whole: tuple[SweepConfig, SweepReport]) -> None:
    config, _ = whole
    held = SweepFolder(config.out).owned()
    with held, pytest.raises(InputError, match=r"process \d+ on .* sweeps in .* already; wait"):
        sweep(config)


def test_without_optuna(
    whole: tuple[SweepConfig, SweepReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"sweep needs Optuna .*; pip install 'cachedet\[sweep\]'"):
        sweep(whole[0])

"""Cells of a comparison: each mode trains, is scored, and goes on where it was stopped."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cachedet.comparison.cell import (
    OWN_FILES,
    CellTask,
    ComparisonConfig,
    Interrupted,
    run_cell,
    train_cell,
)
from cachedet.comparison.folder import Extracted
from cachedet.comparison.results import CellKey, CellResult
from cachedet.comparison.scoring import Scorer
from cachedet.config.run import TrainConfig, load_train_config
from cachedet.errors import InputError
from cachedet.live.mode_names import MODES, Mode, needs_cache
from cachedet.reporting.scored_run import read_runs
from cachedet.series.own_process import remove_unsaved
from cachedet.store.reader import FeatureStore
from cachedet.training.checkpoint import load_checkpoint
from cachedet.training.run_folder import RunFolder, TrainingData
from cachedet.training.stopping import StopSignals
from cachedet.training.trainer import make_trainer

THRESHOLD = "detector.postprocess.score_threshold=0.001"  # few steps give no confidence
CONFIG = Path(__file__).parents[2] / "configs" / "retinanet_fpn_tiny.yaml"


def make_config(*overrides: str) -> TrainConfig:
    small = ("detector.neck.channels=16", "detector.num_convs=1", "schedule.batch_size=4")
    return load_train_config(CONFIG, [*small, "device=cpu", "schedule.epochs=2", *overrides])


def make_task(
    tiny: Any,
    root: Path,
    mode: Mode = "cached",
    *,
    config: TrainConfig | None = None,
    budget: float | None = None,
    extraction_seconds: float = 3.0,
) -> CellTask:
    config = config or make_config()
    key = CellKey(heads="small", mode=mode, seed=config.seed)
    comparison = ComparisonConfig(
        heads={"small": config},
        train=tiny.extract_config(tiny.train),
        val=tiny.extract_config(tiny.val, annotations=tiny.paths.val),
        out=root,
        budget=budget,
        resamples=20,
    )
    extracted = Extracted(views=("base", "hflip"), seconds=extraction_seconds)
    return CellTask(key=key, comparison=comparison, extracted=extracted, folder=root / key.folder)


def wait_for_steps(metrics: Path) -> None:
    """Until the first step has been written down: signals are handled then."""
    while not metrics.exists() or metrics.read_text().count("\n") < 2:
        time.sleep(0.001)


@pytest.fixture(scope="module")
def cells(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[Mode, CellResult]:
    """One of each mode."""
    root = tmp_path_factory.mktemp("cells")
    return {mode: train_cell(make_task(tiny, root, mode)) for mode in (*MODES, "partial_C4")}


@pytest.mark.parametrize("mode", [*MODES, "partial_C4"])
def test_a_cell_tells_what_its_mode_cost(
    cells: dict[Mode, CellResult], mode: Mode, tmp_path: Path
) -> None:
    cell = cells[mode]
    assert cell.steps == 6  # batches of at most 4 from 8 images in two buckets, twice
    assert cell.epochs == 2
    assert 0 <= cell.ap <= 1
    assert cell.low <= cell.ap <= cell.high or math.isclose(cell.ap, cell.low)
    assert cell.seconds > 0
    assert cell.processor_seconds > 0
    assert cell.peak_memory > 50e6
    assert (cell.cache_nbytes > 0) == (cell.extraction_seconds > 0) == needs_cache(mode)
    assert sum(figure.boxes for figure in cell.classes) > 8
    cell.write(tmp_path / "cell.json")
    assert CellResult.read(tmp_path / "cell.json").to_json() == cell.to_json()


def test_modes_compute_and_train_more_and_more(cells: dict[Mode, CellResult]) -> None:
    cached, live, tuned, scratch = (cells[mode] for mode in MODES)
    partial = cells["partial_C4"]
    assert cached.step_flops < partial.step_flops < tuned.step_flops
    assert cached.parameters < partial.parameters < tuned.parameters
    assert partial.cache_nbytes < cached.cache_nbytes
    assert cached.step_flops < live.step_flops < tuned.step_flops == scratch.step_flops
    assert cached.parameters == live.parameters < tuned.parameters < scratch.parameters
    assert live.ap == pytest.approx(cached.ap, abs=1e-3)  # law L3, at the end of a run


def test_a_cell_is_a_run_that_the_report_reads(tiny: Any, tmp_path: Path) -> None:
    task = make_task(tiny, tmp_path, "tuned")
    cell = train_cell(task)
    (run,) = read_runs([task.folder])
    assert run.results["ap"] == cell.ap
    assert run.training_boxes is not None
    assert sum(run.training_boxes.values()) == sum(figure.boxes for figure in cell.classes)


def test_a_budget_is_kept_and_pays_for_extraction(tiny: Any, tmp_path: Path) -> None:
    task = make_task(tiny, tmp_path, budget=5.0, extraction_seconds=3.0)
    cell = train_cell(task)
    steps = json.loads((task.folder / "steps.json").read_text())
    assert steps["seconds"] == 2.0
    assert 2.0 <= cell.seconds < 2.0 + 20 * cell.seconds / cell.steps
    assert cell.epochs == cell.steps / steps["steps_per_epoch"]


def test_a_stopped_budget_goes_on_with_what_is_left(
    tiny: Any, tmp_path: Path, interrupt_after: Any
) -> None:
    task = make_task(tiny, tmp_path, budget=4.0, extraction_seconds=2.0)
    with interrupt_after(task.folder / "metrics.csv"), pytest.raises(Interrupted):
        train_cell(task)
    spent = load_checkpoint(RunFolder(task.folder).last).seconds
    cell = train_cell(task)
    assert 0 < spent < 2.0
    assert 2.0 <= cell.seconds < 2.0 + 20 * cell.seconds / cell.steps


def test_a_killed_budget_goes_on_with_what_is_left(tiny: Any, tmp_path: Path) -> None:
    """The rate of a cosine is that of the share of the budget that is spent, at any pace."""
    cosine = ("schedule.kind=cosine", "schedule.warmup_steps=0")
    config = make_config("eval_every=0", "checkpoint_every_steps=2", *cosine)
    task = make_task(tiny, tmp_path, config=config, budget=4.0, extraction_seconds=2.0)
    last = RunFolder(task.folder).last
    process = multiprocessing.get_context("spawn").Process(target=train_cell, args=(task,))
    process.start()
    while process.is_alive() and (not last.exists() or load_checkpoint(last).seconds < 1.3):
        time.sleep(0.02)
    process.kill()
    process.join()
    saved = load_checkpoint(last)
    assert saved.seconds >= 1.3
    cell = train_cell(task)
    assert cell.seconds >= 2.0
    assert cell.steps >= saved.step
    highest = (1 + math.cos(math.pi * min(saved.seconds / 2.0, 1.0))) / 2
    with (task.folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["lr"]]
    later = [float(row["lr"]) for row in rows if int(row["step"]) > saved.step]
    assert all(rate <= (highest + 0.1) * config.schedule.scaled_lr for rate in later)


def test_a_cell_that_died_before_its_result_takes_no_more_steps(tiny: Any, tmp_path: Path) -> None:
    task = make_task(tiny, tmp_path, budget=3.5, extraction_seconds=3.0)
    whole, again = train_cell(task), train_cell(task)
    assert (again.steps, again.seconds, again.ap) == (whole.steps, whole.seconds, whole.ap)
    assert again.peak_memory >= whole.peak_memory
    assert again.processor_seconds >= whole.processor_seconds


def detections_of(weights: dict[str, Any], task: CellTask, root: Path) -> bytes:
    comparison = task.comparison
    store, val = FeatureStore.open(comparison.train.store), FeatureStore.open(comparison.val.store)
    plain = make_config(THRESHOLD)
    trainer = make_trainer(plain, manifest=store.manifest, total_steps=1)
    trainer.detector.load_state_dict(weights)
    folder = RunFolder.create(root)
    scorer = Scorer(config=plain, store=val, images=comparison.val.images, trainer=trainer)
    scorer.score(folder, TrainingData.of(store), resamples=20)
    return folder.detections.read_bytes()


def test_a_cell_is_scored_with_the_average(tiny: Any, tmp_path: Path) -> None:
    config = make_config(THRESHOLD, "schedule.ema_decay=0.9")
    task = make_task(tiny, tmp_path, config=config)
    train_cell(task)
    folder = RunFolder(task.folder)
    state = load_checkpoint(folder.last)
    assert state.average is not None
    scored = folder.detections.read_bytes()
    assert scored == detections_of(state.average, task, tmp_path / "average")
    assert scored != detections_of(state.heads, task, tmp_path / "plain")


def test_extraction_beyond_the_budget_is_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--budget is 2 s, and extracting the features took 3 s"):
        train_cell(make_task(tiny, tmp_path, budget=2.0))


def test_a_stopped_cell_goes_on_to_the_same_result(
    tiny: Any, tmp_path: Path, interrupt_after: Any
) -> None:
    mode: Mode = "tuned"  # all there is to save: heads, backbone, both in the optimiser
    config = make_config("schedule.epochs=8", "eval_every=0")
    whole = train_cell(make_task(tiny, tmp_path / "whole", mode, config=config))
    task = make_task(tiny, tmp_path / "stopped", mode, config=config)
    with interrupt_after(task.folder / "metrics.csv"), pytest.raises(Interrupted, match="SIGTERM"):
        train_cell(task)
    cell = train_cell(task)
    assert cell.steps == whole.steps
    assert cell.ap == whole.ap
    assert cell.seconds > 0


@pytest.fixture
def interrupt_after() -> Any:
    """A context that sends SIGTERM to this process once a file is there."""

    @contextmanager
    def after(path: Path) -> Iterator[None]:
        def send() -> None:
            wait_for_steps(path)
            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        try:
            yield
        finally:
            thread.join()

    return after


def test_a_process_that_dies_is_a_result(tiny: Any, tmp_path: Path) -> None:
    task = make_task(tiny, tmp_path, config=make_config("schedule.epochs=1000"))

    def kill() -> None:
        wait_for_steps(task.folder / "metrics.csv")
        for child in multiprocessing.active_children():
            child.kill()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with StopSignals() as signals:
        cell = run_cell(task, signals)
    thread.join()
    assert cell.error == "its process was ended by SIGKILL; the system may have run out of memory"


def test_signals_reach_the_process_of_the_cell(
    tiny: Any, tmp_path: Path, interrupt_after: Any
) -> None:
    task = make_task(tiny, tmp_path, config=make_config("schedule.epochs=1000"))
    with (
        StopSignals() as signals,
        interrupt_after(task.folder / "metrics.csv"),
        pytest.raises(Interrupted, match="SIGTERM"),
    ):
        run_cell(task, signals)
    assert (task.folder / "weights" / "last.pt").exists()


def test_a_cell_begins_again_beside_what_is_somebody_elses(tmp_path: Path) -> None:
    """Only files of a run are removed, and nothing behind a link."""
    folder = RunFolder.create(tmp_path / "cell")
    outside = tmp_path / "outside"
    outside.mkdir()
    for path in (folder.config, folder.metrics, folder.root / "steps.json", outside / "a"):
        path.write_text("x")
    (folder.plots / "training.png").symlink_to(outside / "a")
    folder.tensorboard.symlink_to(outside)
    (outside / "events.out.tfevents.1").write_text("x")
    (folder.root / "thesis.tex").write_text("x")
    remove_unsaved(folder, also=OWN_FILES)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left >= {"cell/thesis.tex", "outside/a", "outside/events.out.tfevents.1"}
    assert not left & {"cell/config.yaml", "cell/metrics.csv", "cell/steps.json", "cell/weights"}
    remove_unsaved(RunFolder(tmp_path / "not there"))

"""Many processes train one run: with torchrun where it matters, else forked ones that have joined.

Each process of torchrun's takes seconds to import torch, so there are two such tests, of which one
is thorough.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cachedet.config.run import StagesConfig, TrainConfig, dump_config
from cachedet.distributed.collective import rank
from cachedet.errors import CachedetError
from cachedet.train import TrainReport, train
from cachedet.training.checkpoint import Checkpoint, load_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")

CONFIG = TrainConfig.model_validate(
    yaml.safe_load("""
        detector:
          kind: faster_rcnn
          levels: [C4, C5]
          neck: {kind: fpn, channels: 8, num_levels: 2}
          rpn: {samples: 16, train_post_nms: 20, test_post_nms: 20}
          roi_head: {samples: 8, num_convs: 0, fc_channels: 8}
        schedule:
          {epochs: 4, batch_size: 3, accumulate: 2, ema_decay: 0.9, lr: 0.01, warmup_steps: 2,
           clip_norm: 5.0}
        augment: {translate: 0.5, crop: 0.5, flip: 0.5}
        device: cpu
        residency: stream
        eval_every: 2
        checkpoint_every_steps: 1
    """)
)
LONG = CONFIG.model_copy(
    update={"schedule": CONFIG.schedule.model_copy(update={"epochs": 20}), "eval_every": 0}
)


def train_in_ranks(options: dict[str, Any]) -> TrainReport | str:
    """One rank's report, or what it failed with."""
    try:
        return train(**options)
    except CachedetError as error:
        return f"{type(error).__name__}: {error}"


def options_of(tiny: Any, run: Path, config: TrainConfig = CONFIG, **more: Any) -> dict[str, Any]:
    return {"config": config, **tiny.stores, "run": run, **more}


def last(run: Path) -> Checkpoint:
    return load_checkpoint(run / "weights" / "last.pt")


def assert_same(one: Path, other: Path, *, tolerance: float = 0.0) -> None:
    """Weights, their average and the random state; bit for bit without a tolerance."""
    first, second = last(one), last(other)
    assert (first.step, first.epoch, first.batch) == (second.step, second.epoch, second.batch)
    assert torch.equal(first.torch_rng, second.torch_rng)
    for ours, theirs in ((first.heads, second.heads), (first.average, second.average)):
        assert ours is not None
        assert theirs is not None
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], rtol=tolerance, atol=tolerance)


def files_of(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def uninterrupted(tiny: Any, ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long run of two ranks."""
    run: Path = tmp_path_factory.mktemp("runs") / "uninterrupted"
    ranks.run(train_in_ranks, options_of(tiny, run, LONG), world=2)
    return run


def test_a_run_is_the_same_on_any_number_of_ranks(tiny: Any, ranks: Any, tmp_path: Path) -> None:
    """Batches of three on four ranks are computed whole by each; best.pt and files are as alone."""
    alone = train(**options_of(tiny, tmp_path / "1"))
    for world in (2, 4):
        run = tmp_path / str(world)
        reports = ranks.run(train_in_ranks, options_of(tiny, run), world=world)
        assert all(report.losses == reports[0].losses for report in reports)
        assert all(report.best_ap == reports[0].best_ap for report in reports)
        assert reports[0].losses == pytest.approx(alone.losses, rel=1e-4)
        assert reports[0].best_ap == pytest.approx(alone.best_ap, abs=1e-3)
        assert_same(run, tmp_path / "1", tolerance=1e-5)
        assert files_of(run) == files_of(tmp_path / "1")
        log = (run / "log.txt").read_text()
        assert f"{world} processes share each batch of 3 images" in log
        assert log.count("started; store fingerprint") == 1


def test_stages_of_the_backbone_learn_alike_on_any_number_of_ranks(
    tiny: Any, ranks: Any, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"freeze_at": "C4", "max_steps": 4})
    alone = train(**options_of(tiny, tmp_path / "1", config))
    reports = ranks.run(train_in_ranks, options_of(tiny, tmp_path / "2", config), world=2)
    assert reports[0].losses == pytest.approx(alone.losses, rel=1e-4)
    assert_same(tmp_path / "2", tmp_path / "1", tolerance=1e-5)
    assert any(name.startswith("backbone.") for name in last(tmp_path / "2").heads)


def test_batch_norms_of_stages_want_one_process(tiny: Any, ranks: Any, tmp_path: Path) -> None:
    """Their statistics are not shared, as those of the heads are."""
    stages = StagesConfig(batch_norm="trained")
    config = CONFIG.model_copy(update={"freeze_at": "C4", "stages": stages})
    reports = ranks.run(train_in_ranks, options_of(tiny, tmp_path / "run", config), world=2)
    assert all("2 processes share each batch: leave it frozen" in report for report in reports)


def stop_one_rank(options: dict[str, Any]) -> TrainReport:
    """Rank 1 alone gets a signal once something is saved."""

    def interrupt() -> None:
        while not (options["run"] / "weights" / "last.pt").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    if rank() == 1:
        threading.Thread(target=interrupt, daemon=True).start()
    return train(**options)


def test_a_signal_to_one_rank_stops_all_after_the_same_step(
    tiny: Any, ranks: Any, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first, second = ranks.run(stop_one_rank, options_of(tiny, run, LONG), world=2)
    assert first.reason == second.reason == "SIGUSR1"
    assert first.was_interrupted
    assert first.steps == second.steps == last(run).step
    assert 0 < first.steps < last(uninterrupted).step
    ranks.run(train_in_ranks, options_of(tiny, run, LONG, resume=True), world=2)
    assert_same(run, uninterrupted)


def test_a_folder_that_is_taken_stops_all_ranks(tiny: Any, ranks: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    first, second = ranks.run(train_in_ranks, options_of(tiny, tmp_path), world=2)
    assert first.startswith(f"CheckpointError: {tmp_path} exists already and is not empty")
    assert second.startswith(f"RankError: rank 0 stopped: {tmp_path} exists already")


class Torchrun:
    """`torchrun` with two processes on this machine.

    Its own parser takes --run for --run-path unless lone dashes stand before the program, so
    there is --run-folder too.
    """

    def __init__(self, tiny: Any, run: Path, folder: Path, *start: str, option: str) -> None:
        config = folder / "config.yaml"
        config.write_text(dump_config(LONG))
        self.run = run
        self._log = folder / "torchrun.txt"
        words = [
            Path(sys.executable).with_name("torchrun"),
            "--standalone", "--nproc-per-node", "2", *start,
            "train-heads", config, "--train", tiny.train, "--val", tiny.val, option, run,
        ]  # fmt: skip
        bin_folder = str(Path(sys.executable).parent)
        environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
        with self._log.open("w") as file:
            self._process = subprocess.Popen(
                words, stdout=file, stderr=file, env=environment, cwd=Path(__file__).parents[2]
            )

    def kill_rank(self, number: int) -> None:
        """Once a few steps are saved."""
        while not (self.run / "weights" / "previous.pt").exists():
            assert self._process.poll() is None, self.output
            time.sleep(0.01)
        os.kill(self._find_rank(number), signal.SIGKILL)

    def wait(self) -> int:
        """Exit status."""
        return self._process.wait(timeout=120)

    @property
    def output(self) -> str:
        return self._log.read_text()

    def _find_rank(self, number: int) -> int:
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = path.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1]
                environment = path.joinpath("environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if int(parent) == self._process.pid and f"RANK={number}".encode() in environment:
                return int(path.name)
        raise AssertionError(f"no rank {number}\n{self.output}")


def test_a_killed_rank_ends_the_job_soon_and_any_number_of_ranks_goes_on(
    tiny: Any, ranks: Any, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = Torchrun(tiny, run, tmp_path, "--no-python", "--", "cachedet", option="--run")
    job.kill_rank(0)
    started = time.monotonic()
    assert job.wait() != 0
    assert time.monotonic() - started < 30
    # What rank 1 says of it (see test_collective) is cut off where torchrun is faster.
    assert "Signal 9 (SIGKILL)" in job.output
    assert 0 < last(run).step < last(uninterrupted).step
    ranks.run(train_in_ranks, options_of(tiny, run, LONG, resume=True), world=1)
    assert_same(run, uninterrupted, tolerance=1e-4)


@pytest.mark.thorough
def test_torchruns_restart_goes_on_from_the_last_state(
    tiny: Any, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    start = "--max-restarts", "1", "-m", "cachedet"
    job = Torchrun(tiny, run, tmp_path, *start, option="--run-folder")
    job.kill_rank(1)
    assert job.wait() == 0, job.output
    log = (run / "log.txt").read_text()
    assert "the launcher started the processes anew (restart 1)" in log
    assert "resumed at step" in log
    assert_same(run, uninterrupted)
    assert job.output.count("parameters trained") == 1  # the first rank speaks for all

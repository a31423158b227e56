"""The winner and the default, each trained with new seeds and scored on the held-out images.

The search saw one seed and the choosing images alone, and took the best of many: what it reports of
its winner is too good. These runs are chosen by nobody.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from cachedet.config.run import TrainConfig
from cachedet.evaluation.detection_table import read_results
from cachedet.evaluation.significance import compare_seeds
from cachedet.progress import StageProgress
from cachedet.sweeping.crew import Crew
from cachedet.sweeping.job import Failed
from cachedet.sweeping.sweep_folder import SweepFolder
from cachedet.sweeping.sweep_results import FinalRun, Verdict
from cachedet.sweeping.task import SweepTask
from cachedet.training.run_folder import RunFolder
from cachedet.training.stopping import StopSignals


@dataclass(frozen=True, kw_only=True)
class _Side:
    """The winner or the default."""

    name: str  # of its folders
    trial: int | None  # None: the default
    config: TrainConfig


class Finals:
    """Trained once and kept: trials that are added later may bring another winner."""

    def __init__(
        self, task: SweepTask, folder: SweepFolder, *, winner: int, config: TrainConfig
    ) -> None:
        default = task.config.heads[task.default]
        self._task = task
        self._folder = folder
        self._sides = [_Side(name="default", trial=None, config=default)]
        if config != default:
            self._sides.append(_Side(name=f"{winner:04d}", trial=winner, config=config))
        first = task.config.seed + 1  # the search has seen the seed before
        self._seeds = range(first, first + task.config.final_seeds)
        self._errors: dict[str, str] = {}

    def run(self, signals: StopSignals) -> str | None:
        """Train those that are not there; returns the signal that came meanwhile."""
        left = [
            (side, seed)
            for seed in self._seeds
            for side in self._sides
            if not self._run_of(side, seed).results.is_file()
        ]
        crew = Crew(self._task.config.parallel, signals)
        total = len(self._seeds) * len(self._sides)
        done = total - len(left)
        with StageProgress("final runs", total=total, unit="runs", done=done) as progress:
            try:
                while left or crew.is_busy:
                    while left and crew.has_room:
                        side, seed = left.pop(0)
                        config = side.config.model_copy(update={"seed": seed})
                        run = self._run_of(side, seed)
                        crew.start(run.root.name, self._task.job(config, run.root, final=True))
                    if signals.received is not None:
                        return signals.received
                    for name, message in crew.messages():
                        if isinstance(message, Failed):
                            self._errors[name] = message.error
                        progress.advance()
            finally:
                crew.stop()
        return None

    def runs(self) -> tuple[FinalRun, ...]:
        """Those that are there or have failed."""
        runs = []
        for side in self._sides:
            for seed in self._seeds:
                folder = self._run_of(side, seed)
                ap, error = _ap_of(folder), self._errors.get(folder.root.name, "")
                if error or not math.isnan(ap):
                    runs.append(
                        FinalRun(trial=side.trial, seed=seed, ap=ap, run=folder.root, error=error)
                    )
        return tuple(runs)

    def verdict(self) -> Verdict | None:
        """By the seeds that all have; None where there is none."""
        seeds = [seed for seed in self._seeds if self._is_whole(seed)]
        if not seeds:
            return None
        annotations = self._task.validation.keep_rows(self._task.split.reporting).annotations
        aps = [[_ap_of(self._run_of(side, seed)) for seed in seeds] for side in self._sides]
        if len(self._sides) == 1:
            return Verdict.of_default(aps[0], images=len(annotations))
        default, winner = (
            [read_results(self._run_of(side, seed).detections, annotations) for seed in seeds]
            for side in self._sides
        )
        report = compare_seeds(annotations, winner, default, resamples=self._task.config.resamples)
        return Verdict.of(aps[1], aps[0], report)

    def _is_whole(self, seed: int) -> bool:
        folders: Sequence[RunFolder] = [self._run_of(side, seed) for side in self._sides]
        return not any(math.isnan(_ap_of(folder)) for folder in folders)

    def _run_of(self, side: _Side, seed: int) -> RunFolder:
        return self._folder.final(side.name, seed)


def _ap_of(folder: RunFolder) -> float:
    """NaN where it was not scored."""
    if not folder.results.is_file():
        return math.nan
    ap = json.loads(folder.results.read_text(encoding="utf-8"))["ap"]
    return math.nan if ap is None else float(ap)

"""The search: trials are drawn, trained by the crew, judged, and kept in the study."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cachedet.errors import ConfigError
from cachedet.progress import StageProgress, format_seconds
from cachedet.sweeping.crew import Crew
from cachedet.sweeping.job import Failed, Message, Trained, Validated
from cachedet.sweeping.sweep_folder import SweepFolder
from cachedet.sweeping.sweep_plan import figure_name
from cachedet.sweeping.task import SweepTask
from cachedet.training.stopping import StopSignals

if TYPE_CHECKING:  # it imports Optuna, which may be missing
    from cachedet.sweeping.study import Draw, SweepStudy

OnEnd = Callable[[int], None]
"""Called with the number of each trial that has ended."""


class Search:
    """Ends when so many trials are there, or the time is up."""

    def __init__(
        self, task: SweepTask, folder: SweepFolder, study: SweepStudy, on_end: OnEnd
    ) -> None:
        self._task = task
        self._folder = folder
        self._study = study
        self._on_end = on_end
        self._since = time.monotonic()

    def run(self, signals: StopSignals) -> str | None:
        """Search to the end; returns the signal that came meanwhile."""
        crew, begun = Crew(self._task.config.parallel, signals), self._study.running()
        total, done = self._task.config.trials, self._ended()
        with StageProgress("sweep", total=total or done + 1, unit="trials", done=done) as progress:
            try:
                while True:
                    while crew.has_room and (draw := begun.pop(0) if begun else self._next()):
                        self._start(crew, draw, progress)
                    if not crew.is_busy:
                        return signals.received
                    for name, message in crew.messages():
                        self._take(crew, int(name), message, progress)
            finally:
                crew.stop()
                self._spend()

    def _next(self) -> Draw | None:
        config = self._task.config
        if self._study.is_hopeless():
            return None
        if config.trials is not None:
            is_over = len(self._study.drawn()) >= config.trials
        else:
            spent = self._study.seconds + time.monotonic() - self._since
            is_over = spent >= (config.budget or 0.0)
        return None if is_over else self._study.ask()

    def _start(self, crew: Crew, draw: Draw, progress: StageProgress) -> None:
        try:
            config = self._task.configured(draw.config, draw.values)
        except ConfigError as error:  # values that are possible alone, and not together
            self._end(draw.number, progress, error=str(error))
        else:
            crew.start(str(draw.number), self._task.job(config, self._folder.trial(draw.number)))

    def _take(self, crew: Crew, number: int, message: Message, progress: StageProgress) -> None:
        if isinstance(message, Validated):
            given_up = self._study.report(
                number, message.epoch, message.ap, is_last=message.is_last
            )
            crew.answer(str(number), given_up)
            progress.note(self._describe(f"trial {number}: AP {message.ap:.3f}"))
        elif isinstance(message, Trained):
            figures = message.figures
            names = self._task.config.objective.names
            values = [figures[name] for name in names]
            if any(value is None or math.isnan(value) for value in values):
                self._end(number, progress, error=f"it has no {' and '.join(names)} to judge by")
                return
            self._study.finish(number, figures, values, curve=message.curve)
            self._end(number, progress)
        elif isinstance(message, Failed):
            self._end(number, progress, error=message.error)

    def _end(self, number: int, progress: StageProgress, *, error: str = "") -> None:
        if error:
            self._study.fail(number, error)
        self._spend()
        progress.advance(note=self._describe(""))
        self._on_end(number)

    def _describe(self, now: str) -> str:
        figure, winner = self._task.config.objective.figure, self._study.winner()
        best = ""
        if winner is not None:
            best = f"best {figure_name(figure)} {self._study.value_of(winner):.3f}"
        return "  ".join(filter(None, [best, now, self._describe_time()]))

    def _describe_time(self) -> str:
        """How much of a budget is gone; with a number of trials the progress line knows."""
        budget = self._task.config.budget
        if budget is None:
            return ""
        gone = self._study.seconds + time.monotonic() - self._since
        return f"{format_seconds(gone)} of {format_seconds(budget)}"

    def _ended(self) -> int:
        return sum(trial.state.is_finished() for trial in self._study.trials)

    def _spend(self) -> None:
        """Keep what the search took, so that a budget holds over several calls."""
        now = time.monotonic()
        self._study.spend(now - self._since)
        self._since = now

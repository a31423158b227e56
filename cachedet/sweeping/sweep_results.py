"""What a sweep came to: its trials, the front, and the verdict about the winner."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cachedet.comparison.summary import Spread, spread_of
from cachedet.evaluation.precision import nan_to_null, to_json_values
from cachedet.evaluation.significance import ComparisonReport, Interval
from cachedet.progress import count_of
from cachedet.sweeping.sweep_plan import figure_name

State = Literal["complete", "pruned", "failed", "running", "waiting"]
Judgement = Literal["better", "no difference told", "worse", "default", "one seed"]


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial, ended or not."""

    number: int
    state: State
    config: str
    values: Mapping[str, Any]  # that were drawn, by key of the config
    objectives: tuple[float, ...]  # of one that is complete
    curve: tuple[tuple[int, float], ...]  # epochs done and AP of each validation
    seconds: float  # of steps; NaN where not known
    images: float  # that were trained on; NaN where not known
    error: str
    run: Path  # its folder

    @property
    def best_ap(self) -> float:
        return max((ap for _, ap in self.curve), default=math.nan)

    def to_json(self) -> dict[str, Any]:
        values = {**vars(self), "run": str(self.run), "best_ap": self.best_ap}
        return dict(nan_to_null(values))


@dataclass(frozen=True, kw_only=True)
class FinalRun:
    """The winner or the default trained with another seed; AP of the held-out images."""

    trial: int | None  # None: the default
    seed: int
    ap: float  # NaN where it failed
    run: Path
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**to_json_values(self), "run": str(self.run)}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the held-out images say of the winner against the default."""

    judgement: Judgement
    winner: Spread  # AP over seeds
    default: Spread
    difference: Interval | None  # winner minus default; None where there is nothing to compare
    images: int  # held out

    @classmethod
    def of(
        cls, winner: Sequence[float], default: Sequence[float], report: ComparisonReport
    ) -> Verdict:
        """Better or worse where the interval leaves out 0 and seeds alone move AP by less."""
        groups, gap = (spread_of(winner), spread_of(default)), report.difference.ap
        beyond = abs(gap.value) > max(group.width for group in groups)
        judgement: Judgement = "no difference told"
        if min(group.count for group in groups) < 2:
            judgement = "one seed"
        elif report.tells_apart and beyond:
            judgement = "better" if gap.value > 0 else "worse"
        return cls(
            judgement=judgement,
            winner=groups[0],
            default=groups[1],
            difference=gap,
            images=report.difference.num_images,
        )

    @classmethod
    def of_default(cls, default: Sequence[float], *, images: int) -> Verdict:
        """Nothing that was tried came out above the default where the choice was made."""
        spread = spread_of(default)
        return cls(
            judgement="default", winner=spread, default=spread, difference=None, images=images
        )

    def describe(self) -> str:
        """In sentences."""
        held = count_of(self.images, "held-out image")
        if self.difference is None:
            return (
                f"The default is the best of the search: AP {_ap(self.default)} on {held}. Nothing "
                "that was tried is recommended in its place."
            )
        gap = self.difference
        figures = (
            f"winner {_ap(self.winner)}, default {_ap(self.default)} on {held}; difference "
            f"{gap.value:+.3f}, 95 % interval {gap.low:+.3f} to {gap.high:+.3f} over images and "
            "seeds"
        )
        if self.judgement == "one seed":
            return f"One seed tells nothing: {figures}."
        if self.judgement == "no difference told":
            least = max((gap.high - gap.low) / 2, self.winner.width, self.default.width)
            return (
                f"No difference can be told: {figures}. So many images and seeds tell differences "
                f"of about {least:.3f} AP and more."
            )
        return f"The winner is {self.judgement} than the default: {figures}."

    def to_json(self) -> dict[str, Any]:
        return {**to_json_values(self), "sentence": self.describe()}


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """All that a sweep's folder holds."""

    out: Path
    objectives: tuple[str, ...]
    space: Mapping[str, Sequence[str]]  # of each config, as --param takes it
    trials: tuple[TrialRecord, ...]
    best: tuple[int, ...]  # one trial, or the front
    winner: int | None  # the one of them that is trained again
    importances: Mapping[str, float]
    choosing: int  # images that chose
    reporting: int  # images held out
    finals: tuple[FinalRun, ...]
    verdict: Verdict | None  # None: not there yet
    seconds: float  # of the search, all calls together
    parallel: int
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    interrupted_by: str | None  # a signal; the same command goes on

    @property
    def figure(self) -> str:
        """The first objective, as people write it."""
        return figure_name(self.objectives[0])

    def count(self, state: State) -> int:
        return sum(trial.state == state for trial in self.trials)

    @property
    def page(self) -> Path:
        return self.out / "sweep.html"

    @property
    def images_per_second(self) -> float:
        """Trained on by all trials together, in the time the search took; NaN: not known."""
        images = math.fsum(each.images for each in self.trials if not math.isnan(each.images))
        return images / self.seconds if self.seconds else math.nan

    def to_json(self) -> dict[str, Any]:
        plain = vars(self) | {
            "out": str(self.out),
            "page": str(self.page),
            "images_per_second": self.images_per_second,
        }
        return {
            **dict(nan_to_null(plain | {"trials": (), "finals": (), "verdict": None})),
            "trials": [trial.to_json() for trial in self.trials],
            "finals": [run.to_json() for run in self.finals],
            "verdict": None if self.verdict is None else self.verdict.to_json(),
        }


def _ap(spread: Spread) -> str:
    if spread.count < 2:
        return f"{spread.mean:.3f} (one seed)"
    return f"{spread.mean:.3f} ({spread.least:.3f} to {spread.most:.3f}, {spread.count} seeds)"

"""Charts of a sweep's trials: what each was drawn with, how it learned, and the front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from cachedet.reporting.charts import (
    CIRCLE,
    DASHES,
    DIAMOND,
    LEFT,
    RIGHT,
    Axis,
    Chart,
    Label,
    Line,
    Point,
    Series,
    Shape,
    Spot,
    axis_from_zero,
    draw_chart,
    span_axis,
)
from cachedet.reporting.figures import figure
from cachedet.sweeping.parameters import Parameter, short_key, short_value
from cachedet.sweeping.sweep_plan import Space
from cachedet.sweeping.sweep_results import SweepReport, TrialRecord
from cachedet.text import shorten

_FIRST_ROW, _ROW = 26, 47  # of the parallel coordinates, in units of the drawing
_LEAST_HEIGHT = 141  # from the first row to the last, so that few rows leave their names room
_LONGEST_CHOICE = 12  # letters
_MOST_CHOICES = 6  # that are written below a row
_LABELLED = 8  # trials of a front
_GIVEN_UP, _DEFAULT = 2, 3  # looks: their dashes
_WINNER_SHAPE = Shape(path=DIAMOND, tone="winner")
_FRONT_SHAPE = Shape(path=CIRCLE, tone="cached")
_OTHER_SHAPE = Shape(path=CIRCLE, tone="scratch", is_hollow=True)


def parallel_chart(report: SweepReport, space: Space) -> tuple[Chart, ...]:
    """A row a parameter and one for the figure, a line a trial; none where none got anywhere.

    Rows, and not columns as elsewhere, so that ten of them fit on a phone with their names.
    """
    trials = _to_draw(report)
    rows = [_Row.of_config(space)] if len(space.of_config) > 1 else []
    rows += [
        _Row(name_of(space, config, parameter), parameter, config)
        for config, parameters in space.of_config.items()
        for parameter in parameters
    ]
    reached = [trial.objectives[0] for trial in trials if trial.objectives]
    if not reached or not rows:
        return ()
    axis = span_axis(report.objectives[0], min(reached), max(reached))
    step = max(_ROW, _LEAST_HEIGHT // len(rows))
    heights = [_FIRST_ROW + step * at for at in range(len(rows) + 1)]
    bottom = heights[-1]
    lines = [
        _line(
            series, [*(row.share_of(trial) for row in rows), _share_of_figure(trial, axis)], heights
        )
        for trial, series in zip(trials, _styled(report, trials), strict=True)
    ]
    labels = [label for row, at in zip(rows, heights, strict=False) for label in row.labels(at)]
    ends = [(share, axis.text_of(at)) for share, at in ((0.0, axis.low), (1.0, axis.high))]
    labels += _row_labels(bottom, report.figure, ends)
    return (
        Chart(
            key="parallel",
            title="What each trial was drawn with",
            description="A line is a trial, a row a parameter; the last row is what it reached "
            "on the images that chose. Trials that were given up have no end there.",
            x_name="",
            y_name="",
            x_ticks=(),
            y_ticks=tuple((height, "") for height in heights[:-1]),
            lines=tuple(lines),
            diagonal="",
            zero="",
            links=(),
            marks=(),
            labels=tuple(labels),
            keys=(),
            bottom=bottom,
            height=bottom + 22,
        ),
    )


def learning_chart(report: SweepReport) -> tuple[Chart, ...]:
    """AP over epochs, a line a trial; none where nothing was validated."""
    trials = [trial for trial in _to_draw(report) if _known(trial)]
    if not trials:
        return ()
    series = _styled(report, trials)
    x = axis_from_zero("epochs", max(trial.curve[-1][0] for trial in trials))
    y = axis_from_zero("AP", max(trial.best_ap for trial in trials))
    given_up = sum(trial.state == "pruned" for trial in trials)
    words = f" {given_up} of {len(trials)} were given up on the way." if given_up else ""
    text = f"AP on the images that chose.{words} A trial with a single validation is a dot."
    return (draw_chart("learning", "How they learned", text, x=x, y=y, series=series),)


def front_chart(report: SweepReport) -> tuple[Chart, ...]:
    """The figure against seconds; none where there is one objective."""
    trials = [trial for trial in report.trials if len(trial.objectives) > 1]
    if not trials:
        return ()
    front = sorted((trial for trial in trials if trial.number in report.best), key=_seconds)
    others = [trial for trial in trials if trial.number not in report.best]
    values = [trial.objectives[0] for trial in trials]
    return (
        draw_chart(
            "front",
            f"{report.figure} against seconds of training",
            "Numbers are those of the trials. A dotted line joins the front: trials of which none "
            "is beaten in both.",
            x=axis_from_zero("seconds", max(map(_seconds, trials))),
            y=span_axis(report.figure, min(values), max(values)),
            spots=[_spot(report, trial, at < _LABELLED) for at, trial in enumerate(front)]
            + [_spot(report, trial, False) for trial in others],
            links=[[(_seconds(trial), trial.objectives[0]) for trial in front]],
            keys=(
                ("of the front, trained again", _WINNER_SHAPE),
                ("of the front", _FRONT_SHAPE),
                ("beaten in both", _OTHER_SHAPE),
            ),
        ),
    )


def name_of(space: Space, config: str, parameter: Parameter) -> str:
    """Of a parameter, short; of several configs with the config's name."""
    of = f"{config}: " if len(space.of_config) > 1 else ""
    return of + short_key(parameter.key)


class _Row:
    """A row of the parallel coordinates: where a trial's value lies on it."""

    def __init__(self, name: str, parameter: Parameter, config: str | None) -> None:
        self._name = name
        self._parameter = parameter
        self._config = config  # that has the parameter; None: all

    @classmethod
    def of_config(cls, space: Space) -> _Row:
        """Which of several configs a trial is of."""
        return cls("config", Parameter(key="config", choices=tuple(space.of_config)), None)

    def share_of(self, trial: TrialRecord) -> float | None:
        """0..1 between the ends; None where the trial has no such value."""
        if self._config is None:
            return self._share(trial.config)
        if trial.config != self._config or self._parameter.key not in trial.values:
            return None
        return self._share(trial.values[self._parameter.key])

    def labels(self, height: float) -> list[Label]:
        parameter = self._parameter
        name = self._name + (", log" if parameter.log else "")
        if not parameter.choices:
            ends = parameter.examples()
            return _row_labels(height, name, [(0.0, f"{ends[0]:.3g}"), (1.0, f"{ends[1]:.3g}")])
        shown = parameter.choices if len(parameter.choices) <= _MOST_CHOICES else (
            parameter.choices[0], parameter.choices[-1])  # fmt: skip
        texts = [(self._share(each), shorten(short_value(each), _LONGEST_CHOICE)) for each in shown]
        return _row_labels(height, name, texts)

    def _share(self, value: Any) -> float:
        parameter = self._parameter
        if parameter.choices:
            return parameter.choices.index(value) / max(len(parameter.choices) - 1, 1)
        return parameter.share(value)


def _to_draw(report: SweepReport) -> list[TrialRecord]:
    """Those that got somewhere, the winner first: the first is drawn above the others."""
    trials = [trial for trial in report.trials if trial.state in ("complete", "pruned")]
    return sorted(
        trials,
        key=lambda trial: (
            trial.number != report.winner,
            trial.number != 0,
            trial.state == "pruned",
            -(trial.objectives[0] if trial.objectives else 0.0),
        ),
    )


def _styled(report: SweepReport, trials: Sequence[TrialRecord]) -> list[Series]:
    """The winner, the default, the others by their rank, those given up."""
    ranked = sorted(t.objectives[0] for t in trials if t.objectives)
    named: set[str] = set()
    series = []
    for trial in trials:
        share: float | None = None
        if trial.number == report.winner:
            name, tone, look = f"trial {trial.number}, the winner", "winner", 0
        elif trial.number == 0:
            name, tone, look = "trial 0, the default", "default", _DEFAULT
        elif trial.state == "pruned":
            name, tone, look = "given up", "scratch", _GIVEN_UP
        else:
            name, tone, look = f"others, stronger the higher {report.figure}", "scaled", 0
            share = ranked.index(trial.objectives[0]) / max(len(ranked) - 1, 1)
        series.append(
            Series(
                name=name,
                points=_known(trial),
                dots=len(_known(trial)) == 1,
                look=look,
                tone=tone,
                share=share,
                in_legend=name not in named,
            )
        )
        named.add(name)
    return series


def _known(trial: TrialRecord) -> list[Point]:
    return [(epoch, ap) for epoch, ap in trial.curve if not math.isnan(ap)]


def _seconds(trial: TrialRecord) -> float:
    return trial.objectives[1]


def _spot(report: SweepReport, trial: TrialRecord, is_labelled: bool) -> Spot:
    shape = _FRONT_SHAPE if trial.number in report.best else _OTHER_SHAPE
    value = trial.objectives[0]
    return Spot(
        x=_seconds(trial),
        y=value,
        least=value,
        most=value,
        shape=_WINNER_SHAPE if trial.number == report.winner else shape,
        title=f"trial {trial.number}: {figure(value)} in {_seconds(trial):.1f} s",
        label=str(trial.number) if is_labelled else "",
    )


def _share_of_figure(trial: TrialRecord, axis: Axis) -> float | None:
    return axis.share(trial.objectives[0]) if trial.objectives else None


def _across(share: float) -> float:
    return round(LEFT + share * (RIGHT - LEFT), 1)


def _line(series: Series, shares: Sequence[float | None], heights: Sequence[int]) -> Line:
    """Down all rows; a dot is the figure where the row above it is of another config."""
    *_, above, reached = shares
    is_alone = above is None and reached is not None
    return Line(
        series=series,
        path=_path(shares, heights),
        dash=DASHES[series.look or 0],
        accent=False,
        dots=((_across(reached or 0.0), heights[-1]),) if is_alone else (),
    )


def _path(shares: Sequence[float | None], heights: Sequence[int]) -> str:
    """From row to row; broken where the trial has no value."""
    parts = []
    placed = zip(heights, shares, strict=True)
    for is_there, group in groupby(placed, key=lambda pair: pair[1] is not None):
        corners = [f"{_across(share or 0.0)} {height}" for height, share in group]
        parts += [f"M{'L'.join(corners)}"] if is_there else []
    return "".join(parts)


def _row_labels(height: float, name: str, texts: Sequence[tuple[float, str]]) -> list[Label]:
    """The name above the row, values below it, those at its ends flush with them."""
    anchors = {0.0: "start", 1.0: "end"}
    labels = [
        Label(at=(_across(share), height + 13), anchor=anchors.get(share, "middle"), text=text)
        for share, text in texts
    ]
    return [Label(at=(LEFT, height - 6), anchor="start", text=name), *labels]

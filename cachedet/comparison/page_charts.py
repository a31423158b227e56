"""Charts of a comparison: the paper's two figures for this data, and AP over training time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cachedet.comparison.results import CellKey
from cachedet.comparison.summary import (
    ClassDifference,
    Group,
    Spread,
    Summary,
    class_differences,
    spread_of,
)
from cachedet.live.mode_names import (
    KINDS,
    PARTIAL,
    Mode,
    is_frozen,
    kind_of,
    mode_label,
    sort_modes,
)
from cachedet.reporting.charts import (
    CIRCLE,
    DIAMOND,
    RING,
    SQUARE,
    TRIANGLE,
    Chart,
    Point,
    Series,
    Shape,
    Spot,
    axis_from_zero,
    draw_chart,
    log_axis,
    span_axis,
)
from cachedet.reporting.figures import duration, figure, signed
from cachedet.text import shorten

SHAPES: dict[str, Shape] = {  # by kind of mode
    "cached": Shape(path=CIRCLE, tone="cached"),
    PARTIAL: Shape(path=DIAMOND, tone=PARTIAL),
    "live": Shape(path=RING, tone="live", is_hollow=True),
    "tuned": Shape(path=SQUARE, tone="tuned"),
    "scratch": Shape(path=TRIANGLE, tone="scratch", is_hollow=True),
}
_COSTS = (  # key, title, name of the axis, figure of a run, unit
    ("parameters", "AP against trained parameters", "M trained parameters, log",
     "parameters", 1e6),
    ("flops", "AP against the arithmetic of a step", "GFLOP a step and image, log",
     "step_flops", 1e9),
)  # fmt: skip
_SURE, _UNSURE = Shape(path=CIRCLE, tone="cached"), Shape(path=CIRCLE, tone="", is_hollow=True)
_MOST_NAMED = 8  # classes; of more, the names of those that differ most
_LONGEST_NAME = 16  # letters
_FEWEST_FOR_THIRDS = 9
_MINUTES_FROM = 300.0


@dataclass(frozen=True, kw_only=True)
class CurveOf:
    """Validation AP of a run against seconds from its start, the extraction of its cache first."""

    key: CellKey
    seconds: tuple[float, ...]
    ap: tuple[float, ...]

    @property
    def points(self) -> list[Point]:
        pairs = zip(self.seconds, self.ap, strict=True)
        return [(at, ap) for at, ap in pairs if not math.isnan(ap)]

    def best_until(self, seconds: float) -> float:
        """NaN where nothing was validated by then."""
        return max((ap for at, ap in self.points if at <= seconds), default=math.nan)


def cost_charts(summary: Summary) -> tuple[Chart, ...]:
    """AP against trained parameters and against the arithmetic of a step; of scored runs."""
    charts = []
    for key, title, axis, field, unit in _COSTS:
        costs = {
            (group.heads, group.mode): max(getattr(cell, field) / unit for cell in group.cells)
            for group in summary.groups
            if group.ap.count
        }
        if any(costs.values()):
            charts.append(_cost_chart(summary, key, title, axis, costs))
    return tuple(charts)


def difference_charts(summary: Summary) -> tuple[Chart, ...]:
    """Cached minus fine-tuned by boxes of a class, one chart a heads on the same scales.

    None for fewer than two classes to draw.
    """
    drawn = {
        heads: [
            difference
            for difference in class_differences(summary, heads)
            if difference.boxes > 0 and difference.difference.count  # a logarithm, and a mean
        ]
        for heads in summary.heads
    }
    every = [difference for differences in drawn.values() for difference in differences]
    if len({difference.name for difference in every}) < 2:
        return ()
    boxes = [difference.boxes for difference in every]
    ends = [end for d in every for end in (d.difference.least, d.difference.most)]
    return tuple(
        draw_chart(
            f"difference-{number}",
            heads,
            _describe_differences(differences),
            x=log_axis("training boxes, log", min(boxes), max(boxes)),
            y=span_axis("AP, cached − fine-tuned", min(0.0, *ends), max(0.0, *ends)),
            spots=_class_spots(differences),
            keys=(
                ("every seed on the same side", _SURE),
                ("seeds on both sides, or one seed", _UNSURE),
            ),
        )
        for number, (heads, differences) in enumerate(drawn.items())
        if differences
    )


def time_charts(curves: Sequence[CurveOf]) -> tuple[Chart, ...]:
    """Validation AP over time, a line each run, one chart a heads."""
    by_heads = _by_heads(curves)
    if not by_heads:
        return ()
    every = [point for runs in by_heads.values() for curve in runs for point in curve.points]
    y = axis_from_zero("AP", max(ap for _, ap in every))
    charts = []
    for number, (heads, runs) in enumerate(by_heads.items()):
        end = max(curve.points[-1][0] for curve in runs)
        unit, size = ("minutes", 60.0) if end >= _MINUTES_FROM else ("seconds", 1.0)
        series = [
            Series(
                name=mode_label(mode),
                points=[(at / size, ap) for at, ap in curve.points],
                look=KINDS.index(kind_of(mode)),
                tone=kind_of(mode),
                dots=len(curve.points) == 1,  # of which no line can be drawn
                in_legend=index == 0,
            )
            for mode in sort_modes(curve.key.mode for curve in runs)
            for index, curve in enumerate(_of_mode(runs, mode))
        ]
        x = axis_from_zero(f"{unit} from the start", end / size)
        charts.append(
            draw_chart(f"time-{number}", heads, "Each line is a run.", x=x, y=y, series=series)
        )
    return tuple(charts)


def describe_race(curves: Sequence[CurveOf]) -> tuple[str, ...]:
    """Say where each mode stands when the first is done, a sentence a heads."""
    lines = []
    for heads, runs in _by_heads(curves).items():
        ends = {
            mode: min(curve.points[-1][0] for curve in _of_mode(runs, mode))
            for mode in sort_modes(curve.key.mode for curve in runs)
        }
        if len(ends) < 2:
            continue
        first = min(ends, key=lambda mode: ends[mode])
        stands = []
        for mode in ends:
            ap = spread_of(curve.best_until(ends[first]) for curve in _of_mode(runs, mode))
            where = figure(ap.mean) if ap.count else "not validated yet"
            stands.append(f"{mode_label(mode)} {where}")
        lines.append(
            f"{heads}: after {duration(ends[first])}, when the first run of {mode_label(first)} "
            f"is done, the best validation AP so far is: {', '.join(stands)}."
        )
    return tuple(lines)


def is_one_sided(difference: Spread) -> bool:
    """Whether several seeds agree which of the two is better."""
    return difference.count > 1 and (difference.least > 0 or difference.most < 0)


def _by_heads(curves: Sequence[CurveOf]) -> dict[str, list[CurveOf]]:
    """Sort curves that have points by heads as they came, then by seed."""
    known = [curve for curve in curves if curve.points]
    by_heads: dict[str, list[CurveOf]] = {curve.key.heads: [] for curve in known}
    for curve in sorted(known, key=lambda curve: curve.key.seed):
        by_heads[curve.key.heads].append(curve)
    return by_heads


def _of_mode(curves: Sequence[CurveOf], mode: Mode) -> list[CurveOf]:
    return [curve for curve in curves if curve.key.mode == mode]


def _cost_chart(
    summary: Summary, key: str, title: str, axis: str, costs: dict[tuple[str, Mode], float]
) -> Chart:
    """Heads by their names where these find room, otherwise by letters."""
    ends = [end for group in summary.groups for end in (group.ap.least, group.ap.most)]
    known = [end for end in ends if not math.isnan(end)]
    modes = sort_modes(mode for _, mode in costs)

    def draw(labels: dict[str, str], legend: str) -> Chart:
        spots, links = _cost_spots(summary, costs, labels)
        return draw_chart(
            key,
            title,
            "Means over the seeds, from the least to the most. A dotted line joins frozen and "
            f"fine-tuned of the same heads.{legend}",
            x=log_axis(axis, min(filter(None, costs.values())), max(costs.values())),
            y=span_axis("AP", min(known), max(known)),
            spots=spots,
            links=links,
            keys=[(mode_label(mode), SHAPES[kind_of(mode)]) for mode in modes],
        )

    chart = draw({heads: heads for heads in summary.heads}, "")
    if len(chart.labels) == len({heads for heads, _ in costs}):
        return chart
    letters = {
        heads: chr(ord("A") + number) if number < 26 else str(number + 1)
        for number, heads in enumerate(summary.heads)
    }
    legend = ", ".join(f"{letter}: {heads}" for heads, letter in letters.items())
    return draw(letters, f" {legend}.")


def _cost_spots(
    summary: Summary, costs: dict[tuple[str, Mode], float], labels: dict[str, str]
) -> tuple[list[Spot], list[list[Point]]]:
    """A spot a group, and a link a heads."""
    spots, links = [], []
    for heads in summary.heads:
        groups: dict[Mode, Group] = {
            group.mode: group
            for group in summary.groups
            if group.heads == heads and costs.get((heads, group.mode), 0.0) > 0
        }
        named = groups.get("cached") or groups.get("live") or next(iter(groups.values()), None)
        if named is not None and is_frozen(named.mode) and "tuned" in groups:
            ends: tuple[Mode, Mode] = (named.mode, "tuned")
            links.append([(costs[heads, mode], groups[mode].ap.mean) for mode in ends])
        for group in reversed(groups.values()):  # cached last: above the ring of live
            spots.append(
                Spot(
                    x=costs[heads, group.mode],
                    y=group.ap.mean,
                    least=group.ap.least,
                    most=group.ap.most,
                    shape=SHAPES[kind_of(group.mode)],
                    title=f"{heads}, {mode_label(group.mode)}: {figure(group.ap.mean)}",
                    label=labels[heads] if group is named else "",
                )
            )
    return spots, links


def _class_spots(differences: Sequence[ClassDifference]) -> list[Spot]:
    """Spots of classes, those that differ most first: their names find room first."""
    falling = sorted(differences, key=lambda each: -abs(each.difference.mean))
    return [
        Spot(
            x=each.boxes,
            y=each.difference.mean,
            least=each.difference.least,
            most=each.difference.most,
            shape=_SURE if is_one_sided(each.difference) else _UNSURE,
            title=f"{each.name}, {each.boxes:,} boxes: {signed(each.difference.mean)}",
            label=shorten(each.name, _LONGEST_NAME) if index < _MOST_NAMED else "",
        )
        for index, each in enumerate(falling)
    ]


def _describe_differences(differences: Sequence[ClassDifference]) -> str:
    above = sum(each.difference.mean > 0 for each in differences)
    line = f"{above} of {len(differences)} classes above zero."
    if len(differences) < _FEWEST_FOR_THIRDS:
        return line
    rising = sorted(differences, key=lambda each: each.boxes)
    third = len(rising) // 3
    few, many = (
        spread_of(each.difference.mean for each in part)
        for part in (rising[:third], rising[-third:])
    )
    return (
        f"{line} The {third} classes with the fewest boxes: {signed(few.mean)} in the mean; the "
        f"{third} with the most: {signed(many.mean)}."
    )

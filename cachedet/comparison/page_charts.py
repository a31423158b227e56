"""Charts of a comparison: the paper's two figures for this data, and AP over training time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cachedet.comparison.results import CellKey, CellResult
from cachedet.comparison.summary import (
    FROZEN,
    ClassDifference,
    Spread,
    Summary,
    class_differences,
    spread_of,
)
from cachedet.comparison.verdicts import MODE_NAMES
from cachedet.live.modes import MODES, Mode
from cachedet.reporting.charts import (
    CIRCLE,
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
    draw_spots,
    log_axis,
    span_axis,
)
from cachedet.reporting.content import duration, figure, signed

SHAPES: dict[Mode, Shape] = {
    "cached": Shape(path=CIRCLE, tone="cached"),
    "live": Shape(path=RING, tone="live", is_hollow=True),
    "tuned": Shape(path=SQUARE, tone="tuned"),
    "scratch": Shape(path=TRIANGLE, tone="scratch", is_hollow=True),
}
_SURE, _UNSURE = Shape(path=CIRCLE, tone="cached"), Shape(path=CIRCLE, tone="", is_hollow=True)
_MOST_NAMED = 8  # classes; of more, the names of those that differ most
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
    charts = (
        _cost_chart(
            summary,
            "parameters",
            "AP against trained parameters",
            "M trained parameters, log",
            lambda own: own.parameters / 1e6,
        ),
        _cost_chart(
            summary,
            "flops",
            "AP against the arithmetic of a step",
            "GFLOP a step and image, log",
            lambda own: own.step_flops / 1e9,
        ),
    )
    return tuple(own for own in charts if own is not None)


def difference_charts(summary: Summary) -> tuple[Chart, ...]:
    """Cached minus fine-tuned by boxes of a class, one chart a heads on the same scales.

    None for fewer than two classes to draw.
    """
    found = {heads: _drawable(class_differences(summary, heads)) for heads in summary.heads}
    every = [own for differences in found.values() for own in differences]
    if len({own.name for own in every}) < 2:
        return ()
    boxes = [own.boxes for own in every]
    x = log_axis("training boxes, log", min(boxes), max(boxes))
    ends = [end for own in every for end in (own.difference.least, own.difference.most)]
    y = span_axis("AP, cached − fine-tuned", min(0.0, *ends), max(0.0, *ends))
    charts = []
    for number, (heads, own) in enumerate(found.items()):
        if own:
            spots = _class_spots(own)
            chart = draw_spots(
                f"difference-{number}",
                heads,
                _describe_differences(own),
                x=x,
                y=y,
                spots=spots,
                keys=(
                    ("every seed on the same side", _SURE),
                    ("seeds on both sides, or one seed", _UNSURE),
                ),
            )
            charts.append(chart)
    return tuple(charts)


def time_charts(curves: Sequence[CurveOf]) -> tuple[Chart, ...]:
    """Validation AP over time, a line each run, one chart a heads."""
    known = [own for own in curves if own.points]
    if not known:
        return ()
    y = axis_from_zero("AP", max(ap for own in known for _, ap in own.points))
    charts = []
    for number, heads in enumerate(dict.fromkeys(own.key.heads for own in known)):
        mine = sorted((o for o in known if o.key.heads == heads), key=lambda o: o.key.seed)
        end = max(own.points[-1][0] for own in mine)
        unit, size = ("minutes", 60.0) if end >= _MINUTES_FROM else ("seconds", 1.0)
        charts.append(
            draw_chart(
                f"time-{number}",
                heads,
                "Each line is a run.",
                x=axis_from_zero(f"{unit} from the start", end / size),
                y=y,
                series=[
                    Series(
                        name=MODE_NAMES[mode],
                        points=[(at / size, ap) for at, ap in own.points],
                        look=MODES.index(mode),
                        tone=mode,
                        dots=len(own.points) == 1,  # of which no line can be drawn
                        in_legend=place == 0,
                    )
                    for mode in MODES
                    for place, own in enumerate(o for o in mine if o.key.mode == mode)
                ],
            )
        )
    return tuple(charts)


def describe_race(curves: Sequence[CurveOf]) -> tuple[str, ...]:
    """Where each mode stands when the first is done, a sentence a heads."""
    known = [own for own in curves if own.points]
    said = []
    for heads in dict.fromkeys(own.key.heads for own in known):
        mine = [own for own in known if own.key.heads == heads]
        modes = [mode for mode in MODES if any(own.key.mode == mode for own in mine)]
        if len(modes) < 2:
            continue
        ends = {
            mode: min(own.points[-1][0] for own in mine if own.key.mode == mode) for mode in modes
        }
        first = min(modes, key=lambda mode: ends[mode])
        stands = []
        for mode in modes:
            ap = spread_of(own.best_until(ends[first]) for own in mine if own.key.mode == mode)
            where = figure(ap.mean) if ap.count else "not validated yet"
            stands.append(f"{MODE_NAMES[mode]} {where}")
        said.append(
            f"{heads}: after {duration(ends[first])}, when the first run of {MODE_NAMES[first]} "
            f"is done, the best validation AP so far is: {', '.join(stands)}."
        )
    return tuple(said)


def _cost_chart(
    summary: Summary, key: str, title: str, axis: str, cost: Callable[[CellResult], float]
) -> Chart | None:
    """Heads by their names where these find room, otherwise by letters."""
    costs = {
        (own.heads, own.mode): max(map(cost, own.cells)) for own in summary.groups if own.ap.count
    }
    if not any(costs.values()):
        return None
    ends = [end for own in summary.groups for end in (own.ap.least, own.ap.most)]
    known = [end for end in ends if not math.isnan(end)]
    modes = [mode for mode in MODES if any(mode == own for _, own in costs)]

    def draw(labels: dict[str, str], told: str) -> Chart:
        spots, links = _cost_spots(summary, costs, labels)
        return draw_spots(
            key,
            title,
            "Means over the seeds, from the least to the most. A dotted line joins frozen and "
            f"fine-tuned of the same heads.{told}",
            x=log_axis(axis, min(filter(None, costs.values())), max(costs.values())),
            y=span_axis("AP", min(known), max(known)),
            spots=spots,
            links=links,
            keys=[(MODE_NAMES[mode], SHAPES[mode]) for mode in modes],
        )

    chart = draw({heads: heads for heads in summary.heads}, "")
    if len(chart.labels) == len({heads for heads, _ in costs}):
        return chart
    letters = {heads: _letters(number) for number, heads in enumerate(summary.heads)}
    told = ", ".join(f"{letter}: {heads}" for heads, letter in letters.items())
    return draw(letters, f" {told}.")


def _cost_spots(
    summary: Summary, costs: dict[tuple[str, Mode], float], labels: dict[str, str]
) -> tuple[list[Spot], list[list[Point]]]:
    """A spot a group, and a link a heads."""
    spots, links = [], []
    for heads in summary.heads:
        mine = {
            own.mode: own for own in summary.groups if own.heads == heads and own.ap.count
            if costs[heads, own.mode] > 0
        }  # fmt: skip
        named = mine.get("cached") or mine.get("live") or next(iter(mine.values()), None)
        if named is not None and named.mode in FROZEN and "tuned" in mine:
            links.append(
                [(costs[heads, mode], mine[mode].ap.mean) for mode in (named.mode, "tuned")]
            )
        for own in reversed(mine.values()):  # cached last: above the ring of live
            spots.append(
                Spot(
                    x=costs[heads, own.mode],
                    y=own.ap.mean,
                    least=own.ap.least,
                    most=own.ap.most,
                    shape=SHAPES[own.mode],
                    told=f"{heads}, {MODE_NAMES[own.mode]}: {figure(own.ap.mean)}",
                    label=labels[heads] if own is named else "",
                )
            )
    return spots, links


def _class_spots(differences: Sequence[ClassDifference]) -> list[Spot]:
    """Those that differ most first, as their names find room first."""
    falling = sorted(differences, key=lambda own: -abs(own.difference.mean))
    return [
        Spot(
            x=own.boxes,
            y=own.difference.mean,
            least=own.difference.least,
            most=own.difference.most,
            shape=_SURE if is_one_sided(own.difference) else _UNSURE,
            told=f"{own.name}, {own.boxes:,} boxes: {signed(own.difference.mean)}",
            label=_short(own.name) if place < _MOST_NAMED else "",
        )
        for place, own in enumerate(falling)
    ]


def is_one_sided(difference: Spread) -> bool:
    """Whether several seeds agree which of the two is better."""
    return difference.count > 1 and (difference.least > 0 or difference.most < 0)


def _describe_differences(differences: Sequence[ClassDifference]) -> str:
    above = sum(own.difference.mean > 0 for own in differences)
    told = f"{above} of {len(differences)} classes above zero."
    if len(differences) < _FEWEST_FOR_THIRDS:
        return told
    rising = sorted(differences, key=lambda own: own.boxes)
    third = len(rising) // 3
    few, many = (spread_of(o.difference.mean for o in p) for p in (rising[:third], rising[-third:]))
    return (
        f"{told} The {third} classes with the fewest boxes: {signed(few.mean)} in the mean; the "
        f"{third} with the most: {signed(many.mean)}."
    )


def _drawable(differences: Sequence[ClassDifference]) -> list[ClassDifference]:
    """A logarithm needs a box, and a mean a seed."""
    return [own for own in differences if own.boxes > 0 and own.difference.count]


def _letters(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"

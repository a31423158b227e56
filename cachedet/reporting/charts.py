"""Charts as geometry: what the template draws as SVG, in the page's own colours.

A chart is 360 x 240 units, as wide as a phone, so that its letters keep their size everywhere;
wider pages set several beside each other. Lines differ by their dashes and marks by their outline,
never by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 42, 348, 14, 202
DASHES = ("", "7 4", "2 3", "10 3 2 3", "1 5")
CIRCLE = "M-3.6 0A3.6 3.6 0 1 1 3.6 0A3.6 3.6 0 1 1 -3.6 0Z"
RING = "M-5.4 0A5.4 5.4 0 1 1 5.4 0A5.4 5.4 0 1 1 -5.4 0Z"
SQUARE = "M-3.4 -3.4L3.4 -3.4L3.4 3.4L-3.4 3.4Z"
DIAMOND = "M0 -5L5 0L0 5L-5 0Z"
TRIANGLE = "M0 -5.2L5 3.8L-5 3.8Z"
_MOST_TICKS = 6
_LETTER = 6.3  # width of one at 11 pixels, on the safe side
_LINE = 12.0  # height of one
_REACH = 5.5  # half of a mark

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom in units of the drawing."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A scale with its ticks, linear or of logarithms."""

    name: str
    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies between the ends, 0..1."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def text_of(self, tick: float) -> str:
        """A tick as it is written."""
        if (tick if self.is_log else self.high) >= 1000:
            return f"{tick / 1000:g}k" if tick else "0"
        return f"{tick:g}".replace("-", "−")


@dataclass(frozen=True, kw_only=True)
class Series:
    """Named points to be drawn as a line."""

    name: str
    points: Sequence[Point]
    dots: bool = False
    look: int | None = None  # number of its dashes and tone; None: its index
    tone: str = ""  # class of its colour
    share: float | None = None  # 0..1: how strong the colour is, of a tone that asks
    in_legend: bool = True


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How a mark is drawn, around 0, 0."""

    path: str
    tone: str  # class of its colour
    is_hollow: bool = False


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A point to be drawn as a mark."""

    x: float
    y: float
    least: float  # ends of its error bar
    most: float
    shape: Shape
    title: str  # shown when the pointer rests on it
    label: str = ""  # beside it


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart."""

    series: Series
    path: str  # of an SVG path
    dash: str
    accent: bool
    dots: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point with its error bar."""

    at: Point
    bar: str  # path; empty where there is one value only
    spot: Spot


@dataclass(frozen=True, kw_only=True)
class Label:
    """A text beside marks."""

    at: Point
    anchor: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawn chart, in units of the drawing."""

    key: str
    title: str
    description: str  # for those who cannot see it
    x_name: str
    y_name: str
    x_ticks: tuple[tuple[float, str], ...]  # where a tick lies, and its text
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...]
    diagonal: str  # path of y = x
    zero: str  # path of y = 0
    links: tuple[str, ...]  # paths between marks that belong together
    marks: tuple[Mark, ...]
    labels: tuple[Label, ...]
    keys: tuple[tuple[str, Shape], ...]  # what the marks stand for
    left: int = LEFT
    right: int = RIGHT
    bottom: int = BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def unit_axis(name: str) -> Axis:
    """Axis from 0 to 1."""
    return Axis(name=name, low=0.0, high=1.0, ticks=(0.0, 0.25, 0.5, 0.75, 1.0))


def axis_from_zero(name: str, highest: float) -> Axis:
    """Axis from 0 to the first round number that holds `highest`, in 2 to 5 steps."""
    highest = highest if math.isfinite(highest) and highest > 0 else 1.0
    step = _round_step(highest)
    steps = math.ceil(highest / step - 1e-9)
    ticks = tuple(round(n * step, 10) for n in range(steps + 1))
    return Axis(name=name, low=0.0, high=steps * step, ticks=ticks)


def span_axis(name: str, low: float, high: float) -> Axis:
    """Axis from a round number below `low` to one above `high`, in 1 to 7 steps."""
    step = _round_step(max(high - low, 0.01))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = tuple(round(n * step, 10) for n in range(first, last + 1))
    return Axis(name=name, low=ticks[0], high=ticks[-1], ticks=ticks)


def log_axis(name: str, low: float, high: float) -> Axis:
    """Axis of positive values with some room, with ticks at 1, 2 and 5 or at powers of ten only."""
    room = max(1.25, math.sqrt(5 * low / high))
    low, high = low / room, high * room
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [
        round(f * 10.0**power, 10) for power in powers for f in (1, 2, 5)
        if low <= f * 10.0**power <= high
    ]  # fmt: skip
    if len(ticks) > _MOST_TICKS:
        tens = [10.0**power for power in powers if low <= 10.0**power <= high]
        ticks = tens[:: math.ceil(len(tens) / _MOST_TICKS)]
    return Axis(name=name, low=low, high=high, ticks=tuple(ticks), is_log=True)


def draw_chart(
    key: str,
    title: str,
    description: str,
    *,
    x: Axis,
    y: Axis,
    series: Sequence[Series] = (),
    spots: Sequence[Spot] = (),
    links: Sequence[Sequence[Point]] = (),
    keys: Sequence[tuple[str, Shape]] = (),
    diagonal: bool = False,
) -> Chart:
    """Scale lines and marks; the first look is drawn in the accent colour.

    Labels that find no room are left out, the last spots' first.
    """
    return Chart(
        key=key,
        title=title,
        description=description,
        x_name=x.name,
        y_name=y.name,
        x_ticks=tuple((_x(x, tick), x.text_of(tick)) for tick in x.ticks),
        y_ticks=tuple((_y(y, tick), y.text_of(tick)) for tick in y.ticks),
        lines=tuple(_draw_line(index, each, x, y) for index, each in enumerate(series)),
        diagonal=path_of([(x.low, y.low), (x.high, y.high)], x=x, y=y) if diagonal else "",
        zero=path_of([(x.low, 0.0), (x.high, 0.0)], x=x, y=y) if y.low < 0 <= y.high else "",
        links=tuple(path_of(points, x=x, y=y) for points in links),
        marks=tuple(_draw_mark(spot, x, y) for spot in spots),
        labels=_place_labels(spots, x, y),
        keys=tuple(keys),
    )


def path_of(points: Sequence[Point], *, x: Axis, y: Axis) -> str:
    """The points as an SVG path; empty where there are none."""
    corners = [f"{_x(x, a):.1f} {_y(y, b):.1f}" for a, b in points]
    return f"M{'L'.join(corners)}" if corners else ""


def _round_step(size: float) -> float:
    power = 10.0 ** math.floor(math.log10(size / 4))
    return next(f * power for f in (1.0, 2.0, 2.5, 5.0, 10.0) if f * power * 5 >= size)


def _x(axis: Axis, value: float) -> float:
    return round(LEFT + axis.share(value) * (RIGHT - LEFT), 1)


def _y(axis: Axis, value: float) -> float:
    return round(BOTTOM - axis.share(value) * (BOTTOM - TOP), 1)


def _draw_line(index: int, series: Series, x: Axis, y: Axis) -> Line:
    look = index if series.look is None else series.look
    return Line(
        series=series,
        path=path_of(series.points, x=x, y=y),
        dash=DASHES[look % len(DASHES)],
        accent=look == 0,
        dots=tuple((_x(x, a), _y(y, b)) for a, b in series.points) if series.dots else (),
    )


def _draw_mark(spot: Spot, x: Axis, y: Axis) -> Mark:
    ends = [(spot.x, spot.least), (spot.x, spot.most)] if spot.most > spot.least else []
    return Mark(at=(_x(x, spot.x), _y(y, spot.y)), bar=path_of(ends, x=x, y=y), spot=spot)


def _place_labels(spots: Sequence[Spot], x: Axis, y: Axis) -> tuple[Label, ...]:
    """Put each label at the first of eight places around its mark that nothing else takes."""
    taken = [box for spot in spots for box in _boxes_of(spot, x, y)]
    labels = []
    for spot in spots:
        if not spot.label:
            continue
        for label in _places(spot, x, y):
            box = _box_of(label)
            is_inside = box[0] >= LEFT and box[2] <= RIGHT and box[1] >= TOP and box[3] <= BOTTOM
            if is_inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                labels.append(label)
                break
    return tuple(labels)


def _places(spot: Spot, x: Axis, y: Axis) -> list[Label]:
    """Labels beside, above and below the mark, then askew; a letter or two above it first."""
    mark, bar = _boxes_of(spot, x, y)
    across, down = _x(x, spot.x), _y(y, spot.y)
    near = _REACH + 3
    up, low = min(mark[1], bar[1]) - _REACH, max(mark[3], bar[3]) + _REACH + 8
    beside = [(across + near, down + 4, "start"), (across - near, down + 4, "end")]
    level = [(across, up, "middle"), (across, low, "middle")]
    askew = [
        (across + step * near, down + drop, "start" if step > 0 else "end")
        for drop in (-10, 18)
        for step in (1, -1)
    ]
    sides = [*level, *beside, *askew] if len(spot.label) <= 2 else [*beside, *level, *askew]
    return [
        Label(at=(round(a, 1), round(b, 1)), anchor=anchor, text=spot.label)
        for a, b, anchor in sides
    ]


def _box_of(label: Label) -> Box:
    width = _LETTER * len(label.text)
    left = label.at[0] - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[label.anchor]
    return left - 2, label.at[1] - _LINE + 2, left + width + 2, label.at[1] + 3


def _boxes_of(spot: Spot, x: Axis, y: Axis) -> tuple[Box, Box]:
    """What the mark covers, and its error bar."""
    across, down = _x(x, spot.x), _y(y, spot.y)
    mark = (across - _REACH, down - _REACH, across + _REACH, down + _REACH)
    return mark, (across - 1, _y(y, spot.most), across + 1, _y(y, spot.least))


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

"""Line charts as geometry: what the template draws as SVG, in the page's own colours.

A chart is 360 x 240 units, as wide as a phone, so that its letters keep their size everywhere;
wider pages set several beside each other. Lines differ by their dashes, never by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 42, 348, 14, 202
_MOST_TICKS = 6
DASHES = ("", "7 4", "2 3", "10 3 2 3", "1 5")

Point = tuple[float, float]


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
class Line:
    """One line of a chart."""

    name: str
    path: str  # of an SVG path
    dash: str
    accent: bool
    dots: tuple[Point, ...] = ()
    tone: str = ""  # class of its colour
    in_legend: bool = True


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How a mark is drawn, around 0, 0; kinds differ by their outline, never by colour alone."""

    path: str
    tone: str  # class of its colour
    is_hollow: bool = False


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point with its error bar."""

    at: Point
    shape: Shape
    bar: str  # path; empty where there is one value only
    told: str  # when the pointer rests on it


@dataclass(frozen=True, kw_only=True)
class Label:
    """A text beside marks."""

    at: Point
    anchor: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Tick:
    """Where a tick lies, and its text."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawn chart; all places in units of the drawing."""

    key: str
    title: str
    description: str  # for those who cannot see it
    x_name: str
    y_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    diagonal: str = ""  # path of y = x
    zero: str = ""  # path of y = 0
    links: tuple[str, ...] = ()  # paths between marks that belong together
    marks: tuple[Mark, ...] = ()
    labels: tuple[Label, ...] = ()
    keys: tuple[tuple[str, Shape], ...] = ()  # what the marks stand for
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True, kw_only=True)
class Series:
    """Named points to be drawn as a line."""

    name: str
    points: Sequence[Point]
    dots: bool = False
    look: int | None = None  # number of its dashes and tone; None: its place
    tone: str = ""
    in_legend: bool = True


def unit_axis(name: str) -> Axis:
    """From 0 to 1."""
    return Axis(name=name, low=0.0, high=1.0, ticks=(0.0, 0.25, 0.5, 0.75, 1.0))


def axis_from_zero(name: str, highest: float) -> Axis:
    """From 0 to the first round number that holds `highest`, in 2 to 5 steps."""
    highest = highest if math.isfinite(highest) and highest > 0 else 1.0
    size = 10.0 ** math.floor(math.log10(highest / 4))
    step = next(f * size for f in (1.0, 2.0, 2.5, 5.0, 10.0) if f * size * 5 >= highest)
    steps = math.ceil(highest / step - 1e-9)
    return Axis(
        name=name,
        low=0.0,
        high=steps * step,
        ticks=tuple(round(n * step, 10) for n in range(steps + 1)),
    )


def log_axis(name: str, low: float, high: float) -> Axis:
    """Holds positive values with some room, with ticks at 1, 2 and 5 or at powers of ten only."""
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


def span_axis(name: str, low: float, high: float) -> Axis:
    """From a round number below `low` to one above `high`, in 1 to 7 steps."""
    size = max(high - low, 0.01)
    power = 10.0 ** math.floor(math.log10(size / 4))
    step = next(f * power for f in (1.0, 2.0, 2.5, 5.0, 10.0) if f * power * 5 >= size)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = tuple(round(n * step, 10) for n in range(first, last + 1))
    return Axis(name=name, low=ticks[0], high=ticks[-1], ticks=ticks)


def draw_chart(
    key: str,
    title: str,
    description: str,
    *,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    diagonal: bool = False,
) -> Chart:
    """Scale the series; the first look is drawn in the accent colour."""
    return Chart(
        key=key,
        title=title,
        description=description,
        x_name=x.name,
        y_name=y.name,
        x_ticks=x_ticks(x),
        y_ticks=y_ticks(y),
        lines=tuple(
            Line(
                name=own.name,
                path=path_of(own.points, x=x, y=y),
                dash=DASHES[(number if own.look is None else own.look) % len(DASHES)],
                accent=(number if own.look is None else own.look) == 0,
                dots=tuple(place_of(point, x=x, y=y) for point in own.points) if own.dots else (),
                tone=own.tone,
                in_legend=own.in_legend,
            )
            for number, own in enumerate(series)
        ),
        diagonal=path_of([(x.low, y.low), (x.high, y.high)], x=x, y=y) if diagonal else "",
    )


def x_ticks(axis: Axis) -> tuple[Tick, ...]:
    """Where the ticks of a horizontal axis lie."""
    return tuple(Tick(at=_x(axis, tick), text=axis.text_of(tick)) for tick in axis.ticks)


def y_ticks(axis: Axis) -> tuple[Tick, ...]:
    """Where the ticks of a vertical axis lie."""
    return tuple(Tick(at=_y(axis, tick), text=axis.text_of(tick)) for tick in axis.ticks)


def place_of(point: Point, *, x: Axis, y: Axis) -> Point:
    """Where a point lies in the drawing."""
    return _x(x, point[0]), _y(y, point[1])


def path_of(points: Sequence[Point], *, x: Axis, y: Axis) -> str:
    """The points as an SVG path; empty where there are none."""
    places = [f"{_x(x, a):.1f} {_y(y, b):.1f}" for a, b in points]
    return f"M{'L'.join(places)}" if places else ""


def _x(axis: Axis, value: float) -> float:
    return round(LEFT + axis.share(value) * (RIGHT - LEFT), 1)


def _y(axis: Axis, value: float) -> float:
    return round(BOTTOM - axis.share(value) * (BOTTOM - TOP), 1)

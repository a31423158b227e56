"""Line charts as geometry: what the template draws as SVG, in the page's own colours.

A chart is 360 x 240 units, as wide as a phone, so that its letters keep their size everywhere;
wider pages set several beside each other. Lines differ by their dashes, never by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 348, 14, 202
DASHES = ("", "7 4", "2 3", "10 3 2 3", "1 5")

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear scale with its ticks."""

    name: str
    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Where a value lies between the ends, 0..1."""
        return (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)

    def text_of(self, tick: float) -> str:
        """A tick as it is written."""
        if self.high >= 1000:
            return f"{tick / 1000:g}k" if tick else "0"
        return f"{tick:g}"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart."""

    name: str
    path: str  # of an SVG path
    dash: str
    accent: bool
    dots: tuple[Point, ...] = ()


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
    left: int = _LEFT
    right: int = _RIGHT
    top: int = _TOP
    bottom: int = _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True, kw_only=True)
class Series:
    """Named points to be drawn as a line."""

    name: str
    points: Sequence[Point]
    dots: bool = False


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
    """Scale the series; the first is drawn in the accent colour."""
    return Chart(
        key=key,
        title=title,
        description=description,
        x_name=x.name,
        y_name=y.name,
        x_ticks=tuple(Tick(at=_x(x, tick), text=x.text_of(tick)) for tick in x.ticks),
        y_ticks=tuple(Tick(at=_y(y, tick), text=y.text_of(tick)) for tick in y.ticks),
        lines=tuple(
            Line(
                name=own.name,
                path=path_of(own.points, x=x, y=y),
                dash=DASHES[number % len(DASHES)],
                accent=number == 0,
                dots=tuple((_x(x, a), _y(y, b)) for a, b in own.points) if own.dots else (),
            )
            for number, own in enumerate(series)
        ),
        diagonal=path_of([(x.low, y.low), (x.high, y.high)], x=x, y=y) if diagonal else "",
    )


def path_of(points: Sequence[Point], *, x: Axis, y: Axis) -> str:
    """The points as an SVG path; empty where there are none."""
    places = [f"{_x(x, a):.1f} {_y(y, b):.1f}" for a, b in points]
    return f"M{'L'.join(places)}" if places else ""


def _x(axis: Axis, value: float) -> float:
    return round(_LEFT + axis.share(value) * (_RIGHT - _LEFT), 1)


def _y(axis: Axis, value: float) -> float:
    return round(_BOTTOM - axis.share(value) * (_BOTTOM - _TOP), 1)

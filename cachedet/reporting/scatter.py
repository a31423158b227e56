"""Charts of single points with error bars, and names beside them that do not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cachedet.reporting.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Axis,
    Chart,
    Label,
    Mark,
    Point,
    Shape,
    path_of,
    place_of,
    x_ticks,
    y_ticks,
)

_LETTER = 6.3  # width of one at 11 pixels, on the safe side
_LINE = 12.0  # height of one
_REACH = 5.5  # half of a mark

CIRCLE = "M-3.6 0A3.6 3.6 0 1 1 3.6 0A3.6 3.6 0 1 1 -3.6 0Z"
RING = "M-5.4 0A5.4 5.4 0 1 1 5.4 0A5.4 5.4 0 1 1 -5.4 0Z"
SQUARE = "M-3.4 -3.4L3.4 -3.4L3.4 3.4L-3.4 3.4Z"
TRIANGLE = "M0 -5.2L5 3.8L-5 3.8Z"

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A point to be drawn.

    Attributes:
        least, most: ends of its error bar.
        label: text beside it; empty: none.
    """

    x: float
    y: float
    least: float
    most: float
    shape: Shape
    told: str
    label: str = ""


def draw_spots(
    key: str,
    title: str,
    description: str,
    *,
    x: Axis,
    y: Axis,
    spots: Sequence[Spot],
    links: Sequence[Sequence[Point]] = (),
    keys: Sequence[tuple[str, Shape]] = (),
) -> Chart:
    """Scale the spots; labels that find no room are left out, the last spots' first."""
    return Chart(
        key=key,
        title=title,
        description=description,
        x_name=x.name,
        y_name=y.name,
        x_ticks=x_ticks(x),
        y_ticks=y_ticks(y),
        lines=(),
        zero=path_of([(x.low, 0.0), (x.high, 0.0)], x=x, y=y) if y.low < 0 <= y.high else "",
        links=tuple(path_of(points, x=x, y=y) for points in links),
        marks=tuple(
            Mark(
                at=place_of((own.x, own.y), x=x, y=y),
                shape=own.shape,
                bar=_bar(own, x, y),
                told=own.told,
            )
            for own in spots
        ),
        labels=_place_labels(spots, x=x, y=y),
        keys=tuple(keys),
    )


def _bar(own: Spot, x: Axis, y: Axis) -> str:
    if own.most <= own.least:
        return ""
    return path_of([(own.x, own.least), (own.x, own.most)], x=x, y=y)


def _place_labels(spots: Sequence[Spot], *, x: Axis, y: Axis) -> tuple[Label, ...]:
    """Each label at the first of eight places around its mark that nothing else takes."""
    taken = [box for own in spots for box in _boxes_of(own, x, y)]
    found = []
    for own in spots:
        if not own.label:
            continue
        mark, bar = _boxes_of(own, x, y)
        for label in _places(place_of((own.x, own.y), x=x, y=y), _around(mark, bar), own.label):
            box = _box_of(label)
            is_inside = box[0] >= LEFT and box[2] <= RIGHT and box[1] >= TOP and box[3] <= BOTTOM
            if is_inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                found.append(label)
                break
    return tuple(found)


def _places(at: Point, bar: Box, text: str) -> list[Label]:
    """Beside, above and below the mark, then askew; a letter or two stand above it first."""
    across, down = at
    near, up, low = _REACH + 3, bar[1] - _REACH, bar[3] + _REACH + 8
    beside = [(across + near, down + 4, "start"), (across - near, down + 4, "end")]
    level = [(across, up, "middle"), (across, low, "middle")]
    askew = [
        (across + step * near, down + drop, "start" if step > 0 else "end")
        for drop in (-10, 18)
        for step in (1, -1)
    ]
    sides = [*level, *beside, *askew] if len(text) <= 2 else [*beside, *level, *askew]
    return [
        Label(at=(round(a, 1), round(b, 1)), anchor=anchor, text=text) for a, b, anchor in sides
    ]


def _box_of(label: Label) -> Box:
    width = _LETTER * len(label.text)
    left = label.at[0] - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[label.anchor]
    return left - 2, label.at[1] - _LINE + 2, left + width + 2, label.at[1] + 3


def _around(one: Box, other: Box) -> Box:
    lows = [min(pair) for pair in zip(one, other, strict=True)]
    highs = [max(pair) for pair in zip(one, other, strict=True)]
    return lows[0], lows[1], highs[2], highs[3]


def _boxes_of(own: Spot, x: Axis, y: Axis) -> tuple[Box, Box]:
    across, down = place_of((own.x, own.y), x=x, y=y)
    top, bottom = (place_of((own.x, end), x=x, y=y)[1] for end in (own.most, own.least))
    mark = (across - _REACH, down - _REACH, across + _REACH, down + _REACH)
    return mark, (across - 1, top, across + 1, bottom)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

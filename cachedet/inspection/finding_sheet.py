"""The sheet of a check: the images of its findings, worst first, then a sample; boxes drawn.

One PNG to look at. Boxes that leave their image are drawn on a margin around it.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from cachedet.data.images import decode_image
from cachedet.drawing.image_drawing import Drawing, colour_of, draw_boxes
from cachedet.drawing.lettering import Lettering, drawable
from cachedet.errors import BadImageError
from cachedet.inspection.annotated_set import AnnotatedSet
from cachedet.inspection.finding import Finding
from cachedet.outputs import SHEET_COMMENT

_CELL = 250  # pixels of the long side of an image
_IN_LINE = 5
_GAP = 10
_WIDTH = _IN_LINE * (_CELL + _GAP) + _GAP
_MARGIN = 0.15  # of the long side, around images of boxes that leave them
_MOST_FINDINGS = 14
_SAMPLE = 10
_MOST_CAPTIONS = 6  # boxes of an image that carry the names of their classes
_MOST_BOXES = 300  # drawn of an image
_LEGEND = 16  # classes
_LETTERS = 13
_CHARACTERS = 165  # of a line
_PAPER, _INK, _GREY = (250, 250, 250), (30, 30, 30), (110, 110, 110)
_COLOURS = {"stops": (200, 40, 40), "look at": (200, 130, 0), "sample": (90, 90, 90)}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tile:
    """One image of the sheet, drawn."""

    image: Image.Image
    caption: str


@dataclass(frozen=True, kw_only=True, eq=False)
class _Section:
    """What is said of one finding, and its images."""

    rank: str
    lines: tuple[str, ...]
    tiles: tuple[_Tile, ...]

    @property
    def is_narrow(self) -> bool:
        """Whether half of the width is enough."""
        return len(self.tiles) <= _IN_LINE // 2


def draw_sheet(
    findings: Sequence[Finding], sets: Sequence[AnnotatedSet], *, seed: int = 0
) -> bytes:
    """The PNG: of the findings those that have images or places, then a random sample."""
    by_name = {one.name: one for one in sets if one.dataset is not None}
    sections = []
    shown = [one for one in findings if one.rank != "fine" and one.places]
    for finding in shown[:_MOST_FINDINGS]:
        tiles = list(_tiles_of(finding, by_name))
        lines = [finding.text, finding.advice] if tiles else [finding.text, *finding.first_places]
        sections.append(_Section(rank=finding.rank, lines=tuple(lines), tiles=tuple(tiles)))
    tiles = [
        tile
        for name, row in _sample(sets, seed=seed)
        if (tile := _tile(by_name[name], row, marked={})) is not None
    ]
    title = f"a random sample of {len(tiles)} images"
    sections.append(_Section(rank="sample", lines=(title,), tiles=tuple(tiles)))
    sheet = _stack([_legend(sets), *_laid_out(sections)])
    comment, buffer = PngInfo(), io.BytesIO()
    comment.add_text("Comment", SHEET_COMMENT.decode())
    sheet.save(buffer, "PNG", pnginfo=comment)
    return buffer.getvalue()


def _tiles_of(finding: Finding, sets: Mapping[str, AnnotatedSet]) -> Iterator[_Tile]:
    """The first images of a finding; beside each the one that it is like."""
    marked: dict[tuple[str, int], dict[int, str]] = {}
    like: dict[tuple[str, int], tuple[str, int]] = {}
    for place in finding.places:
        key = (place.set_name, place.row)
        if key not in marked and len(marked) == _IN_LINE:
            break
        boxes = marked.setdefault(key, {})
        if place.box is not None:
            boxes[place.box] = finding.kind
        if place.like is not None:
            like[key] = place.like
    left = _IN_LINE
    for key, boxes in marked.items():
        keys = [key, *([like[key]] if key in like else [])]
        tiles = [_tile(sets[name], row, marked=boxes) for name, row in keys if name in sets]
        if len(tiles) > left:
            break
        for tile in filter(None, tiles):
            left -= 1
            yield tile


def _sample(sets: Sequence[AnnotatedSet], *, seed: int) -> list[tuple[str, int]]:
    rng = np.random.default_rng(seed)
    known = [
        (one.name, row)
        for one in sets
        if one.dataset is not None
        for row in range(len(one.dataset.annotations))
    ]
    chosen = rng.permutation(len(known))[:_SAMPLE]
    return [known[index] for index in sorted(chosen.tolist())]


def _tile(annotated: AnnotatedSet, row: int, *, marked: Mapping[int, str]) -> _Tile | None:
    """The image with its boxes, the marked ones named by their fault; None of a bad image."""
    assert annotated.dataset is not None
    try:
        pixels = decode_image(annotated.dataset.path_of(row))
    except BadImageError:
        return None
    drawing = _drawing(annotated, row, marked)
    height, width = pixels.shape[:2]
    margin = 0
    if len(drawing.boxes) and marked:
        low, high = drawing.boxes.min(axis=0), drawing.boxes.max(axis=0)
        leaves = low[0] < -1 or low[1] < -1 or high[2] > width + 1 or high[3] > height + 1
        margin = round(_MARGIN * max(height, width)) if leaves else 0
    room = _CELL / (max(height, width) + 2 * margin)
    size = max(round(width * room), 1), max(round(height * room), 1)
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    edge = round(margin * room)
    small = np.pad(small, ((edge, edge), (edge, edge), (0, 0)), constant_values=215)
    limit = [2 * _CELL] * 4  # far outside is as good as anywhere
    boxes = (drawing.boxes * room + edge).clip(-_CELL, limit)
    scaled = Drawing(boxes=boxes, labels=drawing.labels, captions=drawing.captions)
    name = f"{annotated.dataset.annotations.file_names[row]} ({annotated.name})"
    return _Tile(image=draw_boxes(small, scaled), caption=name)


def _drawing(annotated: AnnotatedSet, row: int, marked: Mapping[int, str]) -> Drawing:
    """The boxes of an image as they stand in the file; marked ones last, so that they are seen."""
    columns, categories = annotated.columns, annotated.categories
    if columns is None or categories is None:
        return Drawing(boxes=np.zeros((0, 4)), labels=np.zeros(0, dtype=np.int64), captions=())
    numbers = np.flatnonzero(columns.rows == row)
    numbers = numbers[np.isfinite(columns.xyxy[numbers]).all(axis=1)]
    others = [number for number in numbers.tolist() if number not in marked]
    ours = [number for number in numbers.tolist() if number in marked]
    order = np.array([*others, *ours][-_MOST_BOXES:], dtype=np.int64)
    is_named = len(order) <= _MOST_CAPTIONS
    captions = tuple(
        marked.get(number, categories.names[columns.labels[number]] if is_named else "")
        for number in order.tolist()
    )
    return Drawing(boxes=columns.xyxy[order], labels=columns.labels[order], captions=captions)


def _laid_out(sections: Sequence[_Section]) -> Iterator[Image.Image]:
    """One below the other; of narrow ones two side by side."""
    waiting: list[_Section] = []
    for section in [*sections, None]:
        is_narrow = section is not None and section.is_narrow
        if waiting and (not is_narrow or len(waiting) == 2):
            halves = [_draw_section(one, width=_WIDTH // len(waiting)) for one in waiting]
            line = Image.new("RGB", (_WIDTH, max(half.height for half in halves)), _PAPER)
            for number, half in enumerate(halves):
                line.paste(half, (number * _WIDTH // 2, 0))
            yield line
            waiting = []
        if section is not None and is_narrow:
            waiting.append(section)
        elif section is not None:
            yield _draw_section(section, width=_WIDTH)


def _stack(parts: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (_WIDTH, sum(part.height for part in parts)), _PAPER)
    y = 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    return sheet


def _draw_section(section: _Section, *, width: int) -> Image.Image:
    """A bar in the colour of the rank, what is said, and lines of images under their names."""
    colour = _COLOURS[section.rank]
    texts = [
        (part, (_GREY if number else _INK if section.rank == "sample" else colour))
        for number, line in enumerate(section.lines)
        for part in textwrap.wrap(drawable(line), _CHARACTERS * width // _WIDTH)
    ]
    lettering = Lettering(_LETTERS)
    pitch = lettering.height + 3
    rows = [section.tiles[at : at + _IN_LINE] for at in range(0, len(section.tiles), _IN_LINE)]
    heights = [max(tile.image.height for tile in row) + pitch + _GAP for row in rows]
    top = _GAP + len(texts) * pitch + _GAP // 2
    drawn = Image.new("RGB", (width, top + sum(heights) + _GAP), _PAPER)
    canvas = ImageDraw.Draw(drawn)
    canvas.rectangle((_GAP, _GAP, _GAP + 6, top - _GAP // 2), fill=colour)
    for number, (text, ink) in enumerate(texts):
        lettering.draw(canvas, (_GAP + 14, _GAP + number * pitch), text, fill=ink)
    y = top
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            x = _GAP + column * (_CELL + _GAP)
            lettering.draw(canvas, (x, y), lettering.fit(tile.caption, _CELL), fill=_INK)
            drawn.paste(tile.image, (x, y + pitch))
        y += height
    return drawn


def _legend(sets: Sequence[AnnotatedSet]) -> Image.Image:
    """Classes in their colours."""
    names = next((one.categories.names for one in sets if one.categories is not None), ())
    lettering = Lettering(_LETTERS)
    places: list[tuple[float, int, int, str]] = []
    x, y = float(_GAP), _GAP
    for label, name in enumerate(names[:_LEGEND]):
        shown = lettering.fit(name, _CELL)
        if x + lettering.width(shown) + 22 > _WIDTH - _GAP:
            x, y = float(_GAP), y + lettering.height + 6
        places.append((x, y, label, shown))
        x += lettering.width(shown) + 40
    legend = Image.new("RGB", (_WIDTH, y + lettering.height + _GAP), _PAPER)
    canvas = ImageDraw.Draw(legend)
    for x, y, label, shown in places:
        swatch = (x, y + 2, x + 14, y + 14)
        canvas.rectangle(swatch, fill=colour_of(label), outline=(0, 0, 0))
        lettering.draw(canvas, (x + 20, y), shown, fill=_INK)
    return legend

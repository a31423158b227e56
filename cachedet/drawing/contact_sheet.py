"""Contact sheets: ground truth beside prediction, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cachedet.drawing.image_drawing import Drawing, draw_boxes
from cachedet.drawing.lettering import Lettering

_CELL = 300  # pixels of the long side of one image on a sheet
_PAIRS = 2  # in a line
_GAP = 10
_CAPTION = 22
_PAPER = (250, 250, 250)
_INK = (40, 40, 40)


@dataclass(frozen=True, kw_only=True, eq=False)
class SheetRow:
    """One image of a contact sheet: its ground truth beside what was predicted."""

    name: str
    pixels: NDArray[np.uint8]  # (H, W, 3)
    annotations: Drawing
    prediction: Drawing


def contact_sheet(rows: Sequence[SheetRow], path: Path) -> None:
    """Write a PNG with ground truth beside prediction for each row."""
    pairs = [_pair(row) for row in rows]
    lines = [pairs[i : i + _PAIRS] for i in range(0, len(pairs), _PAIRS)]
    heights = [max(pair.height for pair in line) for line in lines]
    pair_width = 2 * _CELL + _GAP // 2
    width = min(_PAIRS, len(pairs)) * (pair_width + 2 * _GAP) + 2 * _GAP
    sheet = Image.new("RGB", (width, sum(heights) + _GAP * (len(lines) + 1)), _PAPER)
    y = _GAP
    for line, height in zip(lines, heights, strict=True):
        for column, pair in enumerate(line):
            sheet.paste(pair, (2 * _GAP + column * (pair_width + 2 * _GAP), y))
        y += height + _GAP
    sheet.save(path)


def _pair(row: SheetRow) -> Image.Image:
    """Caption line above ground truth and prediction side by side."""
    scale = _CELL / max(row.pixels.shape[:2])
    height = round(row.pixels.shape[0] * scale)
    pair = Image.new("RGB", (2 * _CELL + _GAP // 2, height + _CAPTION), _PAPER)
    canvas = ImageDraw.Draw(pair)
    lettering = Lettering(13)
    size = (round(row.pixels.shape[1] * scale), height)
    small = np.asarray(Image.fromarray(row.pixels).resize(size, Image.Resampling.LANCZOS))
    titles = (f"{row.name}: ground truth", "prediction")
    for column, drawing in enumerate((row.annotations, row.prediction)):
        x = column * (_CELL + _GAP // 2)
        lettering.draw(canvas, (x, 3), lettering.fit(titles[column], _CELL), fill=_INK)
        scaled = Drawing(
            boxes=drawing.boxes * scale, labels=drawing.labels, captions=drawing.captions
        )
        pair.paste(draw_boxes(small, scaled), (x, _CAPTION))
    return pair

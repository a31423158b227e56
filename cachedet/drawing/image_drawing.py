"""Boxes, masks and captions drawn on an image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cachedet.data.masks import decode_mask
from cachedet.drawing.lettering import Lettering
from cachedet.drawing.tag_places import Place, place_tags
from cachedet.structures import CategoryMap, Detections, SizeHW

# Okabe and Ito's colours, which colour-blind people tell apart too; further classes take them again
# with lines of other dashes.
PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167), (255, 255, 255),
)  # fmt: skip
_DASHES = ((), (6, 3), (2, 2), (8, 2, 2, 2))  # lengths of line and gap, in widths of the line
_TINT = 0.45  # of a mask's colour over the image
_LEAST_LETTERS = 11  # pixels of a line
_RIM = (0, 0, 0)  # keeps a line visible on a background of its own colour


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """Boxes and masks to draw on one image."""

    boxes: NDArray[np.float64]  # (M, 4) xyxy pixels of the image
    labels: NDArray[np.int64]  # (M,)
    captions: tuple[str, ...]  # M texts such as "cat 0.93"
    masks: tuple[NDArray[np.bool_], ...] = ()  # M bitmaps (H, W), or none


def make_drawing(
    detections: Detections,
    categories: CategoryMap,
    mask_codes: Sequence[bytes] = (),
    *,
    size_hw: SizeHW,
) -> Drawing:
    """Boxes with name and score, the weakest first so that the strongest lie on top."""
    masks = [decode_mask(code, size_hw) > 0 for code in mask_codes]
    order = range(len(detections) - 1, -1, -1)
    labels = detections.labels.numpy()[list(order)]
    return Drawing(
        boxes=detections.boxes.double().numpy()[list(order)],
        labels=labels,
        captions=tuple(
            f"{categories.names[detections.labels[i]]} {float(detections.scores[i]):.2f}"
            for i in order
        ),
        masks=tuple(masks[i] for i in order) if masks else (),
    )


def draw_boxes(pixels: NDArray[np.uint8], drawing: Drawing) -> Image.Image:
    """The image (H, W, 3) with masks, boxes and captions.

    Captions stay inside the image, and none hides another: of boxes that leave no room near them
    the weaker ones, which come first, go without.
    """
    tinted = pixels.copy() if drawing.masks else pixels
    for mask, label in zip(drawing.masks, drawing.labels, strict=False):
        colour = np.array(colour_of(int(label)))
        tinted[mask] = ((1 - _TINT) * tinted[mask] + _TINT * colour).astype(np.uint8)
    image = Image.fromarray(tinted).convert("RGB")
    canvas = ImageDraw.Draw(image)
    widths = _line_widths(drawing.boxes, max(image.size))
    for box, label, width in zip(drawing.boxes, drawing.labels, widths, strict=True):
        x1, y1, x2, y2 = (float(value) for value in box)
        rim = (x1 - 1, y1 - 1, max(x2, x1) + 1, max(y2, y1) + 1)
        canvas.rectangle(rim, outline=_RIM, width=width + 2)
        inner = (x1, y1, max(x2, x1), max(y2, y1))
        _draw_outline(canvas, inner, int(label), width=width, most=max(image.size))
    _draw_tags(canvas, drawing, image.size)
    return image


def _draw_outline(
    canvas: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    label: int,
    *,
    width: int,
    most: int,  # beyond it nothing is seen
) -> None:
    """In the class's colour; from the ninth class on dashed, over the rim."""
    colour, dashes = colour_of(label), _DASHES[label // len(PALETTE) % len(_DASHES)]
    x1, y1, x2, y2 = box
    if not dashes:
        canvas.rectangle(box, outline=colour, width=width)
        return
    canvas.rectangle(box, outline=_RIM, width=width)
    for start, end in _dashes_of(max(x1, 0.0), min(x2, most), width, dashes):
        for top in (y1, y2 - width + 1):
            canvas.rectangle((start, top, end, top + width - 1), fill=colour)
    for start, end in _dashes_of(max(y1, 0.0), min(y2, most), width, dashes):
        for left in (x1, x2 - width + 1):
            canvas.rectangle((left, start, left + width - 1, end), fill=colour)


def _dashes_of(
    start: float, end: float, width: int, dashes: Sequence[int]
) -> Iterator[tuple[float, float]]:
    """Where the pieces of a line begin and end."""
    number = 0
    while start <= end:
        length = dashes[number % len(dashes)] * width
        if number % 2 == 0:
            yield start, min(start + length - 1, end)
        start, number = start + length, number + 1


def colour_of(label: int) -> tuple[int, int, int]:
    return PALETTE[label % len(PALETTE)]


def _line_widths(boxes: NDArray[np.float64], long_side: int) -> list[int]:
    """By the size of the image, and thinner around boxes that a line would fill."""
    usual = max(2, round(long_side / 250))
    short_sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=long_side)
    return [max(1, min(usual, round(side / 12))) for side in short_sides.tolist()]


def _letters_for(boxes: NDArray[np.float64], long_side: int) -> Lettering:
    """By the size of the image, and smaller where there are many small boxes."""
    usual = long_side / 40
    if len(boxes) > 1:
        short_sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
        usual = min(usual, max(usual / 2, float(np.median(short_sides)) / 4))
    return Lettering(max(_LEAST_LETTERS, round(usual)))


def _draw_tags(canvas: ImageDraw.ImageDraw, drawing: Drawing, size: tuple[int, int]) -> None:
    letters = _letters_for(drawing.boxes, max(size))
    numbers = [n for n, caption in enumerate(drawing.captions) if caption][::-1]
    shown = [letters.fit(drawing.captions[n], size[0] - 4) for n in numbers]
    places = place_tags(
        [drawing.boxes[n] for n in numbers],
        [(math.ceil(letters.width(text)) + 4, letters.height + 2) for text in shown],
        size=size,
    )
    drawn = [*zip(numbers, shown, places, strict=True)][::-1]
    for n, _, place in drawn:  # lines first: they pass below tags
        if place is not None and place.line is not None:
            canvas.line(place.line, fill=_RIM, width=3)
            canvas.line(place.line, fill=colour_of(int(drawing.labels[n])), width=1)
    for n, text, place in drawn:
        if place is not None:
            _draw_tag(canvas, place, text, colour_of(int(drawing.labels[n])), letters)


def _draw_tag(
    canvas: ImageDraw.ImageDraw,
    place: Place,
    text: str,
    colour: tuple[int, int, int],
    letters: Lettering,
) -> None:
    x1, y1, x2, y2 = place.rectangle
    canvas.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
    ink = (0, 0, 0) if sum(colour) > 330 else (255, 255, 255)
    letters.draw(canvas, (x1 + 2, y1 + 1), text, fill=ink)

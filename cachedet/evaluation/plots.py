"""Images where people would rather look than read: boxes on photographs, curves of a run."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cachedet.data.masks import decode_mask, paste_masks
from cachedet.evaluation.lettering import Lettering, plot_label
from cachedet.store.files.durable import write_durably
from cachedet.structures import CategoryMap, Detections, SizeHW
from cachedet.training.metrics_file import read_table

_log = logging.getLogger("cachedet.evaluation")

# Okabe and Ito's colours, which colour-blind people tell apart too; further classes start again.
PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167), (255, 255, 255),
)  # fmt: skip
_CELL = 300  # pixels of the long side of one image on a sheet
_PAIRS = 2  # in a line
_GAP = 10
_CAPTION = 22
_TINT = 0.45  # of a mask's colour over the image
_PAPER = (250, 250, 250)
_INK = (40, 40, 40)


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """Boxes and masks to draw on one image."""

    boxes: NDArray[np.float64]  # (M, 4) xyxy pixels of the image
    labels: NDArray[np.int64]  # (M,)
    captions: tuple[str, ...]  # M texts such as "cat 0.93"
    masks: tuple[NDArray[np.bool_], ...] = ()  # M bitmaps (H, W), or none


@dataclass(frozen=True, kw_only=True, eq=False)
class SheetRow:
    """One image of a contact sheet: its ground truth beside what was predicted."""

    name: str
    pixels: NDArray[np.uint8]  # (H, W, 3)
    annotations: Drawing
    prediction: Drawing


def make_drawing(detections: Detections, categories: CategoryMap, *, size_hw: SizeHW) -> Drawing:
    """Boxes with name and score, the weakest first so that the strongest lie on top."""
    masks = [decode_mask(code, size_hw) > 0 for code in paste_masks(detections, size_hw)]
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
    """The image (H, W, 3) with masks, boxes and captions; captions stay inside the image."""
    tinted = pixels.copy() if drawing.masks else pixels
    for mask, label in zip(drawing.masks, drawing.labels, strict=False):
        colour = np.array(colour_of(int(label)))
        tinted[mask] = ((1 - _TINT) * tinted[mask] + _TINT * colour).astype(np.uint8)
    image = Image.fromarray(tinted).convert("RGB")
    canvas = ImageDraw.Draw(image)
    long_side = max(image.size)
    width = max(2, round(long_side / 250))
    lettering = Lettering(max(11, round(long_side / 40)))
    for box, label in zip(drawing.boxes, drawing.labels, strict=True):
        x1, y1, x2, y2 = (float(value) for value in box)
        # A dark rim keeps the line visible on a background of its own colour.
        canvas.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(0, 0, 0), width=width + 2)
        canvas.rectangle((x1, y1, x2, y2), outline=colour_of(int(label)), width=width)
    for box, label, caption in zip(drawing.boxes, drawing.labels, drawing.captions, strict=True):
        _tag(canvas, box, caption, colour_of(int(label)), lettering, image.size)
    return image


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


def plot_training(metrics: Path, path: Path) -> None:
    """Losses, validation AP, learning rate and the wait for data over steps, from metrics.csv.

    A plot that cannot be written is noted, and no error.
    """
    table = read_table(metrics)
    rows = table.rows
    parts = [name for name in table.columns if name.startswith("loss_")]
    figure = Figure(figsize=(8, 9), layout="constrained")
    panels = figure.subplots(4, 1, sharex=True, height_ratios=(3, 3, 1.3, 1.3))
    losses, scores, rates, waits = panels
    for column in ("loss", *parts):
        name = column.removeprefix("loss_").replace("_", " ").replace("rpn", "RPN")
        label = "total" if column == "loss" else plot_label(name)
        losses.plot(*_series(rows, column), label=label, linewidth=1.4)
    losses.set_ylabel("training loss")
    losses.set_yscale("log")
    for column, name in (("val_ap", "AP"), ("val_ap50", "AP50")):
        scores.plot(*_series(rows, column), label=name, marker="o", markersize=3, linewidth=1.4)
    scores.set_ylabel("validation")
    best = max([0.0, *_series(rows, "val_ap")[1], *_series(rows, "val_ap50")[1]])
    scores.set_ylim(0, max(0.1, 1.1 * best))
    rates.plot(*_series(rows, "lr"), color="0.3", linewidth=1.4)
    rates.set_ylabel("learning rate")
    rates.set_ylim(bottom=0)
    rates.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    steps, shares = _series(rows, "waiting_share")
    waits.plot(steps, [100 * share for share in shares], color="0.3", linewidth=1.4)
    waits.set_ylabel("waiting for\ndata, %")
    waits.set_ylim(bottom=0, top=max(5, *(110 * share for share in shares), 0))
    waits.set_xlabel("step")
    for axes in (losses, scores):
        axes.legend(frameon=False, ncols=6, loc="lower right", bbox_to_anchor=(1, 0.98))  # above
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    try:
        write_durably(path, buffer.getvalue())
    except OSError as error:  # the run is whole without it
        _log.warning("note: cannot write %s: %s", path, error.strerror or error)


def colour_of(label: int) -> tuple[int, int, int]:
    return PALETTE[label % len(PALETTE)]


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


def _tag(
    canvas: ImageDraw.ImageDraw,
    box: NDArray[np.float64],
    caption: str,
    colour: tuple[int, int, int],
    lettering: Lettering,
    size: tuple[int, int],
) -> None:
    if not caption:
        return
    shown = lettering.fit(caption, size[0] - 4)
    width, height = lettering.width(shown) + 4, lettering.height + 2
    x = min(max(float(box[0]), 0), max(size[0] - width, 0))
    above = float(box[1]) - height
    y = above if above >= 0 else max(min(float(box[1]), size[1] - height), 0)
    canvas.rectangle((x, y, x + width, y + height), fill=colour)
    ink = (0, 0, 0) if sum(colour) > 330 else (255, 255, 255)
    lettering.draw(canvas, (x + 2, y + 1), shown, fill=ink)


def _series(rows: Sequence[dict[str, str]], column: str) -> tuple[list[int], list[float]]:
    filled = [row for row in rows if row.get(column)]
    return [int(row["step"]) for row in filled], [float(row[column]) for row in filled]

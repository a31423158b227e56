"""Curves of a run."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cachedet.drawing.lettering import plot_label
from cachedet.store.files.durable import write_durably
from cachedet.training.metrics_file import read_table

_log = logging.getLogger("cachedet.evaluation")


def plot_training(metrics: Path, path: Path) -> None:
    """Losses, validation AP, learning rate and the wait for data over steps, from metrics.csv.

    A plot that cannot be written is noted, and no error.
    """
    table = read_table(metrics)
    rows = table.rows
    parts = [name for name in table.columns if name.startswith("loss_")]
    figure = Figure(figsize=(8, 9), dpi=120, layout="constrained")
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
    canvas: Any = FigureCanvasAgg(figure)  # without types
    canvas.print_png(buffer)  # savefig draws twice
    try:
        write_durably(path, buffer.getvalue())
    except OSError as error:  # the run is whole without it
        _log.warning("note: cannot write %s: %s", path, error.strerror or error)


def _series(rows: Sequence[dict[str, str]], column: str) -> tuple[list[int], list[float]]:
    filled = [row for row in rows if row.get(column)]
    return [int(row["step"]) for row in filled], [float(row[column]) for row in filled]

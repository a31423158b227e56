"""The three ways to train a detector, and what a step of each costs. Writes one PNG.

The costs are those that `benchmarks/against_live.py --cuts C4` printed; the first backbone of the
file is drawn. Blue is frozen and computed once, orange learns.

python benchmarks/draw_partial.py --costs costs.json --out docs/images/partial.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

WAYS = {
    "cached": ("cached (default)", 3, "the cache has C3, C4, C5"),
    "partial_C4": ("partial, freeze_at: C4", 2, "the cache has C3, C4"),
    "tuned": ("fine-tuned, no cache", 0, "images in every step"),
}
PARTS = ("stem to C3", "C4", "C5")
FROZEN, LEARNS, CACHE, INK = "#9db8d2", "#f0a35e", "#f4e8a6", "#22262b"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--costs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    costs = json.loads(options.costs.read_text())
    figure = Figure(figsize=(10.4, 4.6), dpi=100, facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, 10.4), ylim=(0, 4.6))
    axes.axis("off")
    result = costs["results"][0]
    for number, way in enumerate(WAYS):
        draw_way(axes, way, result, y=3.05 - 1.2 * number)
    write_heads(axes, costs, result)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out)


def draw_way(axes: Axes, way: str, result: dict[str, Any], *, y: float) -> None:
    """A row: its name, its chain of boxes, and the bars of what a step costs."""
    name, kept, where = WAYS[way]
    axes.text(0.2, y + 0.72, name, weight="bold", size=11, color=INK)
    axes.text(0.2 + 2.75, y + 0.74, where, size=9, color="#565c64")
    x = 0.2
    for place, part in enumerate(PARTS):
        if place == kept and kept > 0:
            x = draw_cache(axes, x, y)
        x = draw_box(axes, part, x, y, 0.95, FROZEN if place < kept else LEARNS)
    if kept == len(PARTS):
        x = draw_cache(axes, x, y)
    draw_box(axes, "neck, heads", x, y, 1.15, LEARNS, last=True)
    draw_bar(axes, 6.55, y, result["to_tuned"][way], f"{result['to_cached'][way]:.2f} x cached")
    peak = {mode: values["megabytes"] for mode, values in result["peak"].items()}
    draw_bar(axes, 8.55, y, peak[way] / peak["tuned"], f"{peak[way] / 1000:.1f} GB")


def draw_box(
    axes: Axes, text: str, x: float, y: float, width: float, colour: str, *, last: bool = False
) -> float:
    """Returns where the next one begins."""
    style = "round,pad=0,rounding_size=0.06"
    shape = FancyBboxPatch((x, y), width, 0.5, boxstyle=style, fc=colour, ec=INK, lw=1)
    axes.add_patch(shape)
    axes.text(x + width / 2, y + 0.25, text, ha="center", va="center", size=9.5, color=INK)
    if not last:
        draw_arrow(axes, x + width, y)
    return x + width + 0.25


def draw_cache(axes: Axes, x: float, y: float) -> float:
    axes.add_patch(
        FancyBboxPatch(
            (x, y - 0.08),
            0.72,
            0.66,
            boxstyle="round,pad=0,rounding_size=0.2",
            fc=CACHE,
            ec=INK,
            lw=1,
        )
    )
    axes.text(x + 0.36, y + 0.25, "cache", ha="center", va="center", size=9.5, color=INK)
    draw_arrow(axes, x + 0.72, y)
    return x + 0.72 + 0.25


def draw_arrow(axes: Axes, x: float, y: float) -> None:
    axes.add_patch(
        FancyArrowPatch(
            (x, y + 0.25),
            (x + 0.25, y + 0.25),
            arrowstyle="-|>",
            mutation_scale=9,
            color=INK,
            lw=1,
            shrinkA=0,
            shrinkB=0,
        )
    )


def draw_bar(axes: Axes, x: float, y: float, share: float, text: str) -> None:
    """`share` is that of fine-tuning."""
    full = 1.55
    axes.add_patch(
        FancyBboxPatch(
            (x, y + 0.1), full * share, 0.3, boxstyle="square,pad=0", fc="#5b7fa6", ec="none"
        )
    )
    inside = share > 0.75
    axes.text(
        x + (full * share - 0.06 if inside else full * share + 0.06),
        y + 0.25,
        text,
        size=9,
        va="center",
        ha="right" if inside else "left",
        color="white" if inside else INK,
    )


def write_heads(axes: Axes, costs: dict[str, Any], result: dict[str, Any]) -> None:
    axes.text(6.55, 4.25, "time of a step", weight="bold", size=10.5, color=INK)
    axes.text(8.55, 4.25, "peak memory", weight="bold", size=10.5, color=INK)
    for x, colour, text in (
        (0.2, FROZEN, "frozen, computed once"),
        (2.35, LEARNS, "learns, computed in every step"),
    ):
        axes.add_patch(
            FancyBboxPatch((x, 4.22), 0.24, 0.18, boxstyle="square,pad=0", fc=colour, ec=INK, lw=1)
        )
        axes.text(x + 0.32, 4.31, text, size=9.5, va="center", color=INK)
    axes.text(
        0.2,
        0.14,
        f"{result['backbone']}, {costs['config']}, {costs['image_size']} px, "
        f"steps of {costs['batch']} images, {costs['threads_of_torch']} threads on "
        f"{costs['cores']} CPU cores",
        size=8.5,
        color="#565c64",
    )


if __name__ == "__main__":
    main()

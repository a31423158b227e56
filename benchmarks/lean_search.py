"""The lean corner: what AP costs in training-step FLOPs and seconds, and which heads are worth it.

python benchmarks/lean_search.py --train train.zarr --val val.zarr --out DIR --epochs 12 \
    [--seeds 0] [--only "retinanet_fpn,cascade_rcnn*"] [--device cuda]

Every variant changes one or two things of a tiny config and is trained for the same epochs. A run
that is already in DIR is read, not repeated. Prints one JSON object on standard output, a Markdown
table (a star marks the Pareto points: nothing cheaper is as good) on standard error, and draws
DIR/lean.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import torch
from detector_table import run_once
from device_clock import add_device_option, busy_name, describe_device

from cachedet.device import choose_device
from cachedet.store.format.manifest import library_versions

matplotlib.use("Agg")
CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class Variant:
    """Something to train: a tiny config with a few keys changed."""

    config: str
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``retinanet_fpn num_convs=1``, without the sections the keys stand in."""
        changes = [text.removeprefix("detector.").replace("neck.", "") for text in self.overrides]
        return " ".join([self.config, *changes])


def width(channels: int) -> str:
    return f"detector.neck.channels={channels}"


def towers(num_convs: int) -> str:
    return f"detector.num_convs={num_convs}"


SEPARABLE = ("detector.separable=true", "detector.neck.separable=true")
LIGHT_ROI = ("detector.roi_head.fc_channels=128", "detector.roi_head.samples=32")
ADAPTERS = ("detector.adapters={kind: bottleneck}",)
VARIANTS = (
    Variant("retinanet_fpn"),
    Variant("retinanet_fpn", (width(32), towers(1))),
    Variant("retinanet_fpn", (width(32), towers(2))),
    Variant("retinanet_fpn", (width(64), towers(1))),
    Variant("retinanet_fpn", (width(64), *SEPARABLE)),
    Variant("retinanet_fpn", (width(96), towers(2), *SEPARABLE)),
    Variant("retinanet_fpn", ("detector.anchors.scales_per_octave=1",)),
    Variant("retinanet_fpn", (width(96), towers(4))),
    Variant("retinanet_fpn", ADAPTERS),
    Variant("retinanet_nasfpn", ("detector.neck.repeats=1", towers(1))),
    Variant("faster_rcnn_fpn"),
    Variant("faster_rcnn_fpn", (width(32), *LIGHT_ROI)),
    Variant("faster_rcnn_fpn", (width(96),)),
    Variant("cascade_rcnn_fpn"),
    Variant("cascade_rcnn_fpn", (width(32),)),
    Variant("cascade_rcnn_fpn", (width(32), *LIGHT_ROI)),
    Variant("cascade_rcnn_fpn", LIGHT_ROI),
    Variant("cascade_rcnn_fpn", ("detector.roi_head.resolution=5",)),
    Variant("cascade_rcnn_fpn", ("detector.roi_head.samples=32",)),
    Variant("cascade_rcnn_fpn", (width(96), "detector.roi_head.fc_channels=512")),
    Variant("cascade_rcnn_fpn", ADAPTERS),
    Variant("cascade_rcnn_nasfpn", ("detector.neck.repeats=1",)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("train", "val", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--only", default="*", help="names of variants, with commas; or with *")
    add_device_option(parser)
    options = parser.parse_args()
    wanted = [
        variant
        for variant in VARIANTS
        if any(fnmatchcase(variant.name, pattern) for pattern in options.only.split(","))
    ]
    rows = [measure(variant, options) for variant in wanted]
    rows.sort(key=lambda row: float(row["gflop"]))
    mark_pareto(rows)
    print_table(rows)
    draw(rows, options.out / "lean.png", title=f"{options.train.stem}, {options.epochs} epochs")
    facts = {"epochs": options.epochs, "threads_of_torch": torch.get_num_threads()}
    facts |= {
        "machine": describe_device(choose_device(options.device)),
        "versions": library_versions(),
    }
    print(json.dumps({"train": options.train.name, **facts, "rows": rows}, indent=1))


def measure(variant: Variant, options: argparse.Namespace) -> dict[str, Any]:
    """Mean over the seeds of one variant."""
    folder = options.out / variant.name.replace(" ", ",").replace("/", "_")
    one = argparse.Namespace(
        train=options.train,
        val=options.val,
        out=folder,
        overrides=list(variant.overrides),
        minutes=None,
        epochs=options.epochs,
        device=options.device,
    )
    path = CONFIGS / f"{variant.config}_tiny.yaml"
    runs = [run_once(path, seed, one) for seed in map(int, options.seeds.split(","))]
    means = {key: statistics.mean(run[key] for run in runs) for key in ("ap", "ap50", "ap75")}
    seconds = statistics.mean(run[busy_name(choose_device(options.device))] for run in runs)
    return {
        "variant": variant.name,
        **means,
        "seeds": len(runs),
        "gflop": runs[0]["step_gflop_per_image"],
        "parameters": runs[0]["parameters"],
        "peak_megabytes": max(run["peak_megabytes"] for run in runs),
        "ms_a_image": seconds / runs[0]["images"] * 1e3,
    }


def mark_pareto(rows: list[dict[str, Any]]) -> None:
    """`rows` by rising FLOPs: a row is worth it if no cheaper one is as good."""
    best = -1.0
    for row in rows:
        row["pareto"] = row["ap"] > best
        best = max(best, row["ap"])


def print_table(rows: list[dict[str, Any]]) -> None:
    print("| | variant | GFLOP | ms | M parameters | AP | AP50 | AP75 |", file=sys.stderr)
    print("|---" * 8 + "|", file=sys.stderr)
    for row in rows:
        cells = ["*" if row["pareto"] else "", row["variant"], f"{row['gflop']:.2f}"]
        cells += [f"{row['ms_a_image']:.0f}", f"{row['parameters'] / 1e6:.2f}"]
        cells += [f"{row[figure]:.3f}" for figure in ("ap", "ap50", "ap75")]
        print("| " + " | ".join(cells) + " |", file=sys.stderr)


def draw(rows: list[dict[str, Any]], path: Path, *, title: str) -> None:
    """AP against the FLOPs of a training step, one colour a detector."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for kind in ("retinanet", "faster_rcnn", "cascade_rcnn"):
        own = [row for row in rows if row["variant"].startswith(kind)]
        axes.scatter([row["gflop"] for row in own], [row["ap"] for row in own], label=kind)
    front = [row for row in rows if row["pareto"]]
    gflop, ap = [row["gflop"] for row in front], [row["ap"] for row in front]
    axes.step(gflop, ap, where="post", color="grey", linewidth=1, label="nothing cheaper as good")
    axes.set(xscale="log", xlabel="GFLOP of a training step, an image", ylabel="AP", title=title)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()

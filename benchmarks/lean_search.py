"""The lean corner: what AP costs in training-step FLOPs and seconds, and which heads are worth it.

python benchmarks/lean_search.py --images DIR --annotations train.json --val-annotations val.json \
    --out DIR --epochs 12 [--seeds 0] [--only "retinanet_fpn,cascade_rcnn*"] [--device cuda]

Every variant changes one or two things of a tiny config and is trained from the cache for the same
epochs, by `compare`: what is already in --out is read, not repeated. Prints one JSON object on
standard output, a Markdown table (a star marks the Pareto points: nothing cheaper is as good) on
standard error, and draws DIR/lean.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import torch
from device_clock import add_device_option, describe_device

from cachedet.compare import compare
from cachedet.comparison.cell import ComparisonConfig
from cachedet.comparison.folder import ComparisonFolder
from cachedet.comparison.summary import Group
from cachedet.config.presets import load_config
from cachedet.config.run import make_extract_config
from cachedet.device import choose_device, default_workers
from cachedet.store.format.manifest import library_versions
from cachedet.store.reader import FeatureStore

matplotlib.use("Agg")


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
    for name in ("images", "annotations", "val-annotations", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--views", default="base,hflip,jitter=2:0.5-1.5")
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
    summary = compare(make_comparison(wanted, options)).summary
    groups = {group.heads: group for group in summary.groups if group.ap.count}
    rows = [
        measure(variant.name, groups[variant.name], options)
        for variant in wanted
        if variant.name in groups
    ]
    rows.sort(key=lambda row: float(row["gflop"]))
    mark_pareto(rows)
    print_table(rows)
    draw(rows, options.out / "lean.png", title=f"{options.out.name}, {options.epochs} epochs")
    facts = {"epochs": options.epochs, "threads_of_torch": torch.get_num_threads()}
    facts |= {
        "machine": describe_device(choose_device(options.device)),
        "versions": library_versions(),
    }
    print(json.dumps({**facts, "rows": rows}, indent=1))


def make_comparison(variants: Sequence[Variant], options: argparse.Namespace) -> ComparisonConfig:
    folder, own = ComparisonFolder(options.out), ["eval_every=0", f"device={options.device}"]
    train = {
        "images": options.images, "annotations": options.annotations, "store": folder.train,
        "image_size": options.image_size, "views": options.views, "device": options.device,
        "workers": default_workers(), "on_bad_image": "skip",
    }  # fmt: skip
    val = {"annotations": options.val_annotations, "store": folder.val, "views": "base"}
    return ComparisonConfig(
        heads={
            variant.name: load_config(
                f"{variant.config}_tiny", overrides=[*variant.overrides, *own]
            )
            for variant in variants
        },
        train=make_extract_config(train),
        val=make_extract_config(train | val),
        out=options.out,
        modes=("cached",),
        seeds=tuple(map(int, options.seeds.split(","))),
        epochs=options.epochs,
    )


def measure(name: str, group: Group, options: argparse.Namespace) -> dict[str, Any]:
    """Mean over the seeds of one variant."""
    means = {key: group.over_seeds(key).mean for key in ("ap", "ap50", "ap75")}
    is_cpu = choose_device(options.device).type == "cpu"
    seconds = group.over_seeds("processor_seconds" if is_cpu else "seconds").mean
    images = len(FeatureStore.open(ComparisonFolder(options.out).train)) * options.epochs
    return {
        "variant": name,
        **means,
        "seeds": group.ap.count,
        "gflop": group.over_seeds("step_flops").mean / 1e9,
        "parameters": group.over_seeds("parameters").mean,
        "peak_megabytes": group.peak_memory / 1e6,
        "ms_a_image": seconds / images * 1e3,
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

"""Trains configs on one pair of stores, several seeds each, and prints a table of what they reach.

python benchmarks/detector_table.py --train train.zarr --val val.zarr --out DIR --epochs 12 \
    [--seeds 0,1,2] [--configs a.yaml,b.yaml] [--set key=value ...] [--minutes 10] [--device cuda]

With --minutes each run gets as many whole epochs as its own measured step time allows; else all
run --epochs. On one thread (OMP_NUM_THREADS=1) the minutes are processor time, so that other work
on the machine takes nothing away from a run; on more threads, and on CUDA, of the clock. AP is
the last epoch's, not the best one's, so nothing is chosen on the validation set. A run that is
already in DIR is read, not repeated, so the command continues after an interruption. Prints one
JSON object on standard output and a Markdown table on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from device_clock import (
    add_device_option,
    describe_device,
    forget_peak,
    peak_megabytes,
    wall_seconds,
)

from cachedet.config.run import EvalConfig, TrainConfig, load_train_config
from cachedet.device import choose_device
from cachedet.evaluate import evaluate
from cachedet.loading.loader import make_run_loader
from cachedet.model import measure_model
from cachedet.store.format.manifest import library_versions
from cachedet.store.reader import FeatureStore
from cachedet.train import train
from cachedet.training.trainer import make_trainer

TINY = ",".join(
    f"configs/{kind}_{neck}_tiny.yaml"
    for kind in ("retinanet", "faster_rcnn", "cascade_rcnn")
    for neck in ("fpn", "nasfpn")
)
FIGURES = ("ap", "ap50", "ap75")
WARM_STEPS, TIMED_STEPS = 3, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("train", "val", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--configs", default=TINY)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--minutes", type=float, help="of training for each run, at most")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    add_device_option(parser)
    options = parser.parse_args()
    rows = [summarise(name, options) for name in options.configs.split(",")]
    print_table(rows)
    print(
        json.dumps(
            {
                "train": str(options.train),
                "minutes": options.minutes,
                "overrides": options.overrides,
                "rows": rows,
                "cores": os.cpu_count(),
                "threads_of_torch": torch.get_num_threads(),
                "machine": describe_device(choose_device(options.device)),
                "versions": library_versions(),
            },
            indent=1,
        )
    )


def summarise(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Mean and spread over the seeds of one config."""
    runs = [run_once(Path(name), seed, options) for seed in map(int, options.seeds.split(","))]
    row: dict[str, Any] = {"config": Path(name).stem, "runs": runs}
    for figure in FIGURES:
        found = [run[figure] for run in runs]
        row[figure] = statistics.mean(found)
        row[f"{figure}_spread"] = max(found) - min(found)
    for cost in ("epochs", "seconds", "processor_seconds"):
        row[cost] = statistics.mean(run[cost] for run in runs)
    row["parameters"] = runs[0]["parameters"]
    row["step_gflop_per_image"] = runs[0]["step_gflop_per_image"]
    return row


def run_once(path: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    folder = options.out / f"{path.stem}-{seed}"
    done = folder / "table_row.json"
    if done.exists():
        row: dict[str, Any] = json.loads(done.read_text())
        return row
    device = choose_device(options.device)
    own = [f"seed={seed}", "eval_every=0", f"device={options.device}"]
    config = load_train_config(path, [*options.overrides, *own])
    store = FeatureStore.open(options.train)
    epochs = epochs_within(config, store, options.minutes) if options.minutes else options.epochs
    schedule = config.schedule.model_copy(update={"epochs": epochs})
    config = config.model_copy(update={"schedule": schedule})
    forget_peak(device)
    before = time.process_time()
    report = train(config, train_store=options.train, val_store=options.val, run=folder)
    busy = time.process_time() - before
    peak = peak_megabytes(device)
    scores = evaluate(folder, store=options.val, config=EvalConfig(device=options.device)).scores
    sizes = store.buckets("base")
    row = {
        "seed": seed,
        "epochs": epochs,
        "steps": report.steps,
        "images": epochs * len(store),
        "seconds": report.seconds,
        "processor_seconds": busy,
        "peak_megabytes": peak,
        "parameters": report.parameters,
        "step_gflop_per_image": measure_model(
            config.detector,
            features=store.manifest.spec,
            num_classes=len(store.manifest.categories),
            size_hw=max(sizes, key=lambda bucket: len(sizes[bucket])),
        ).total.step_flops
        / 1e9,
        **{figure: getattr(scores, figure) for figure in FIGURES},
    }
    done.write_text(json.dumps(row))
    return row


def epochs_within(config: TrainConfig, store: FeatureStore, minutes: float) -> int:
    """Whole epochs that fit, from the median of a few steps."""
    device = choose_device(config.device)
    of_processor = torch.get_num_threads() == 1 and device.type == "cpu"
    clock = time.process_time if of_processor else partial(wall_seconds, device)
    loader = make_run_loader(config, store)
    trainer = make_trainer(config, manifest=store.manifest, total_steps=10_000)
    seconds = []
    started = clock()
    for number, batch in enumerate(loader.epoch(0)):
        trainer.take_step(batch)
        seconds.append(clock() - started)
        started = clock()
        if number == WARM_STEPS + TIMED_STEPS:
            break
    step = statistics.median(seconds[WARM_STEPS:])
    return max(1, int(minutes * 60 / (step * len(loader.plan(0)))))


def print_table(rows: list[dict[str, Any]]) -> None:
    costs = "epochs | seconds | processor seconds | M parameters | GFLOP a step"
    print(f"| config | AP | AP50 | AP75 | {costs} |", file=sys.stderr)
    print("|---" * 9 + "|", file=sys.stderr)
    for row in rows:
        figures = [f"{row[f]:.3f} ({row[f'{f}_spread']:.3f})" for f in FIGURES]
        cells = [row["config"], *figures, f"{row['epochs']:.1f}"]
        cells += [f"{row['seconds']:.0f}", f"{row['processor_seconds']:.0f}"]
        cells += [f"{row['parameters'] / 1e6:.2f}", f"{row['step_gflop_per_image']:.2f}"]
        print("| " + " | ".join(cells) + " |", file=sys.stderr)


if __name__ == "__main__":
    main()

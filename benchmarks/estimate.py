"""What `cachedet estimate` predicts against what the same extraction and training then take.

python benchmarks/estimate.py --images DIR --annotations train.json --out DIR \
    [--backbones tf_efficientnet_lite0:auto,resnet50:none] [--image-size 384] [--epochs 3] \
    [--config configs/retinanet_fpn_tiny.yaml] [--rounds 1] [--live]

For each backbone: `estimate`, `extract` and `train-heads` as a user calls them, each in a process
of its own; with --live also an epoch of each of the other modes by `compare`, from which the true
break-even epoch follows. Prints one JSON object; `error` is predicted / actual - 1. Run it on a
machine that does nothing else: a neighbour that is gone by the time of `extract` is an
error of the prediction here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from cachedet.store.format.manifest import library_versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbones", default="tf_efficientnet_lite0:auto,resnet50:none")
    parser.add_argument("--config", type=Path, default=Path("configs/retinanet_fpn_tiny.yaml"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--live", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = [
        run(*backbone.split(":"), options=options)
        for backbone in options.backbones.split(",")
        for _ in range(options.rounds)
    ]
    facts = {"data": options.annotations.parent.name, "config": options.config.stem}
    facts |= {"cores": os.cpu_count(), "threads_of_torch": torch.get_num_threads()}
    facts |= {"machine": platform.machine(), "versions": library_versions()}
    print(json.dumps({**facts, "image_size": options.image_size, "results": results}, indent=1))


def run(backbone: str, weights: str, *, options: argparse.Namespace) -> dict[str, Any]:
    """One prediction and what came of it."""
    store, folder = options.out / f"{backbone}.zarr", options.out / f"{backbone}.run"
    for path in (store, folder):
        shutil.rmtree(path, ignore_errors=True)
    inputs = ["--images", options.images, "--annotations", options.annotations]
    inputs += ["--backbone", backbone, "--weights", weights, "--on-bad-image", "skip"]
    inputs += ["--image-size", options.image_size]
    changes = [f"schedule.epochs={options.epochs}", "eval_every=0", *options.overrides]
    heads = [options.config, *(word for change in changes for word in ("--set", change))]
    started = time.perf_counter()
    predicted = cachedet("estimate", *heads, *inputs, "--store", store)
    seconds = time.perf_counter() - started
    extracted = cachedet("extract", *inputs, "--store", store)
    trained = cachedet("train-heads", *heads, "--train", store, "--run", folder)
    outcome = {**extracted["predicted"], **trained["predicted"]}
    if options.live:
        outcome |= outcome_of_modes(inputs, options, predicted["forecast"])
        outcome["break-even epoch"] = break_even(outcome, predicted["forecast"])
    return {
        "backbone": backbone,
        "seconds_of_estimate": seconds,
        "outcome": {
            name: {**pair, "error": pair["predicted"] / pair["actual"] - 1}
            for name, pair in outcome.items()
        },
        "advice": predicted["advice"],
    }


def outcome_of_modes(
    inputs: list[Any], options: argparse.Namespace, forecast: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Seconds per epoch and peak memory of the modes that need the backbone."""
    folder = options.out / "compare"
    shutil.rmtree(folder, ignore_errors=True)
    told = cachedet(
        "compare",
        *(options.config, *inputs, "--val-annotations", options.annotations, "--out", folder),
        *("--modes", "live,tuned", "--epochs", 1, "--set", "eval_every=0", "--resamples", 1),
    )
    found = {}
    for cell in told["cells"]:
        mode = cell["key"]["mode"]
        own = forecast["modes"][mode]
        found[f"{mode}: seconds per epoch"] = {
            "predicted": own["seconds_per_epoch"],
            "actual": cell["seconds"] / cell["epochs"],
        }
        found[f"{mode}: peak memory"] = {
            "predicted": own["ram"] if own["device"] is None else own["device"],
            "actual": cell["peak_memory"],
        }
    return found


def break_even(outcome: dict[str, dict[str, float]], forecast: dict[str, Any]) -> dict[str, float]:
    """Of the seconds that were found; scan and fit as predicted, nobody else times them."""
    beside = forecast["scan_seconds"] + forecast["fit_seconds"]
    live = outcome["live: seconds per epoch"]["actual"]
    saved = live - outcome["seconds per epoch"]["actual"]
    return {
        "predicted": forecast["break_even"] or float("nan"),
        "actual": (beside + outcome["extraction seconds"]["actual"]) / saved,
    }


def cachedet(*words: object) -> dict[str, Any]:
    """A command in a process of its own: its memory is that of a real run."""
    command = [sys.executable, "-m", "cachedet", *map(str, words), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


if __name__ == "__main__":
    main()

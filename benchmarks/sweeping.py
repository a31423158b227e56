"""Many trainings from one cache against a few fine-tuned ones, and several processes against one.

python benchmarks/sweeping.py --images DIR --annotations train.json --val-annotations val.json \
    --out DIR [--config retinanet_fpn_tiny] [--set KEY=VALUE ...] [--param KEY=RANGE ...] \
    [--image-size 384] [--trials 40] [--tuned 5] [--speed-trials 6] [--parallel 2] [--weights auto]

1. One fine-tuned training, by `compare --modes tuned`, with the epochs of the config; its seconds
   times --tuned is what the search may take. `compare` extracts the stores, which all others read.
2. A sweep of --trials trials with --parallel processes: seconds of the search, seconds with the
   final runs, and the verdict.
3. --speed-trials random trials (0: none), none given up, by one process and by --parallel:
   images/s over all trials, and the memory of the processes by their proportional share (PSS),
   which counts what they share once; beside it what the stored features take.

Folders under --out are kept: a benchmark that was stopped goes on. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cachedet.compare import compare
from cachedet.comparison.cell import ComparisonConfig
from cachedet.config.presets import find_config
from cachedet.config.run import TrainConfig, load_train_config, make_extract_config
from cachedet.device import default_workers, usable_cores
from cachedet.store.format.manifest import library_versions
from cachedet.store.reader import FeatureStore
from cachedet.sweep import sweep
from cachedet.sweeping.sweep_plan import SweepConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--val-annotations", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="retinanet_fpn_tiny")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--param", action="append", default=[], help="default: the shipped space")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--views", default="base,hflip")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--tuned", type=int, default=5)
    parser.add_argument("--speed-trials", type=int, default=6)
    parser.add_argument("--parallel", type=int, default=2)
    options = parser.parse_args()
    heads = load_train_config(find_config(options.config), options.set)
    tuned = measure_tuned(options, heads)
    config = SweepConfig(
        heads={options.config: heads},
        train=str(options.out / "tuned/features/train.zarr"),
        val=str(options.out / "tuned/features/val.zarr"),
        out=options.out / "sweep",
        trials=options.trials,
        parallel=options.parallel,
        params=tuple(options.param),
    )
    result = {
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "libraries": library_versions(),
        "tuned": tuned,
        "sweep": measure_sweep(config, tuned["step_seconds"] * options.tuned),
    }
    if options.speed_trials:
        result["speed"] = measure_speed(config, options)
    print(json.dumps(result, indent=1))


def measure_tuned(options: argparse.Namespace, heads: TrainConfig) -> dict[str, Any]:
    """One fine-tuned training, validated as its config says."""
    train = {
        "images": options.images, "annotations": options.annotations, "views": options.views,
        "backbone": options.backbone, "weights": options.weights, "workers": default_workers(),
        "image_size": options.image_size, "codec": "int8", "device": heads.device,
        "on_bad_image": "skip",
        "store": options.out / "tuned/features/train.zarr",
    }  # fmt: skip
    val = {
        "annotations": options.val_annotations, "views": "base",
        "store": options.out / "tuned/features/val.zarr",
    }  # fmt: skip
    config = ComparisonConfig(
        heads={options.config: heads},
        train=make_extract_config(train),
        val=make_extract_config(train | val),
        out=options.out / "tuned",
        modes=("tuned",),
    )
    (cell,) = compare(config).cells
    return {
        "step_seconds": cell.seconds,  # without validations, which the search has too
        "epochs": cell.epochs,
        "ap": cell.ap,
    }


def measure_sweep(config: SweepConfig, allowed: float) -> dict[str, Any]:
    """The search and its verdict, beside the seconds that it may take."""
    started = time.perf_counter()
    report = sweep(config)
    assert report.verdict is not None
    return {
        "search_seconds": report.seconds,
        "call_seconds": time.perf_counter() - started,
        "allowed_seconds": allowed,
        "share": report.seconds / allowed,
        "trials": len(report.trials),
        "given_up": report.count("pruned"),
        "failed": report.count("failed"),
        "images_per_second": report.images_per_second,
        "winner": None if report.winner is None else dict(report.trials[report.winner].values),
        "verdict": report.verdict.to_json(),
    }


def measure_speed(config: SweepConfig, options: argparse.Namespace) -> dict[str, Any]:
    """The same random trials by one process and by several."""
    store = FeatureStore.open(config.train)
    found: dict[str, Any] = {"features_megabytes": store.nbytes / 1e6}
    for parallel in (1, options.parallel):
        speed = replace(
            config,
            out=options.out / f"speed-{parallel}",
            trials=options.speed_trials,
            parallel=parallel,
            sampler="random",
            pruner="none",
            params=("schedule.lr=log:1e-4..1e-2",),
            final_seeds=1,
        )
        with MemoryOfProcesses() as memory:
            report = sweep(speed)
        found[f"processes_{parallel}"] = {
            "images_per_second": report.images_per_second,
            "search_seconds": report.seconds,
            "pss_megabytes": memory.most / 1e6,
        }
    one, several = (found[f"processes_{count}"] for count in (1, options.parallel))
    found["times_faster"] = several["images_per_second"] / one["images_per_second"]
    return found


class MemoryOfProcesses:
    """The most that all processes started by this one took together, by PSS (Linux)."""

    def __init__(self) -> None:
        self.most = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryOfProcesses:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.5):
            self.most = max(self.most, sum(map(pss_of, descendants(os.getpid()))))


def descendants(root: int) -> list[int]:
    """Processes below this one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(after_name[1])
            except (OSError, IndexError):
                continue
    found, new = [], [root]
    while new:
        new = [pid for pid, parent in parents.items() if parent in new]
        found += new
    return found


def pss_of(pid: int) -> int:
    """Bytes; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


if __name__ == "__main__":
    main()

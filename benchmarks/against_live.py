"""Training from the cache against the live frozen backbone and against fine-tuning it.

With --cuts also training the stages behind these levels from the cache (docs/partial.md).

python benchmarks/against_live.py --images DIR --annotations train.json --out DIR \
    [--backbones tf_efficientnet_lite0,resnet50,convnext_base,vit_base_patch16_224] \
    [--config configs/retinanet_fpn_tiny.yaml] [--image-size 384] [--count 48] [--steps 6] \
    [--cuts C4,C3] \
    [--device cuda]

Backbones have random weights: only time and memory are measured. The images are extracted first.
Seconds a step are taken in turn, several rounds, in one process: `cached` (streamed from disk),
`live` (images decoded ahead in threads, frozen backbone, the same heads), `tuned` (backbone with
gradients), `partial_C4` (stages behind C4 with gradients, from the cache), `memory` (heads on
features that are there already: H), `backbone` (forward alone: B). The arithmetic limit of live /
cached is (B + H) / H. Peak memory is that of a process that does nothing else.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import cached_property
from itertools import islice
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
from torch import Tensor

from cachedet.config.run import TrainConfig, load_train_config, make_extract_config
from cachedet.detector.end_to_end import PIXELS
from cachedet.device import choose_device
from cachedet.extract import extract
from cachedet.live.mode_names import cut_of
from cachedet.live.modes import TrainingMode, make_training_mode
from cachedet.store.format.manifest import library_versions
from cachedet.store.reader import FeatureStore
from cachedet.structures import Batch, FeatureSpec

BACKBONES = "tf_efficientnet_lite0,resnet50,convnext_base,vit_base_patch16_224"
TRAINED = ("cached", "live", "tuned")
PARTS = ("memory", "backbone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbones", default=BACKBONES)
    parser.add_argument("--config", type=Path, default=Path("configs/retinanet_fpn_tiny.yaml"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--count", type=int, default=48, help="images")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cuts", default="", help="levels behind which stages are trained too")
    parser.add_argument("--peak-of", help="a way of training: two steps of it, and their memory")
    add_device_option(parser)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.peak_of:
        print(json.dumps(peak_of(options.backbones, options)))
        return
    results = []
    for name in options.backbones.split(","):
        results.append(measure(name, options))
        print(json.dumps(results[-1]), file=sys.stderr)  # kept should the next one fail
    facts = {"config": options.config.stem, "overrides": options.overrides, "batch": options.batch}
    facts |= {"cores": os.cpu_count(), "threads_of_torch": torch.get_num_threads()}
    facts |= {
        "machine": describe_device(choose_device(options.device)),
        "versions": library_versions(),
    }
    print(json.dumps({**facts, "image_size": options.image_size, "results": results}, indent=1))


class Bench:
    """One backbone, its store and one rig for each way of training; each made when needed."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.store = FeatureStore.open(extracted(name, options))
        self.config = make_config(self.store.manifest.spec, options)
        self.images = options.images
        self.steps = options.steps
        self.device = choose_device(options.device)
        self.training_modes: dict[str, TrainingMode] = {}
        self.streams: dict[str, Iterator[Batch]] = {}

    @cached_property
    def in_memory(self) -> list[Batch]:
        return self.held("cached")

    @cached_property
    def pixels(self) -> list[Tensor]:
        return [batch.features[PIXELS] for batch in self.held("live")]

    def training_mode(self, mode: Any) -> TrainingMode:
        if mode not in self.training_modes:
            self.training_modes[mode] = make_training_mode(
                mode,
                self.config.model_copy(update={"freeze_at": cut_of(mode)}),
                store=self.store,
                images=self.images,
                weights="none",
                total_steps=10_000,
            )
        return self.training_modes[mode]

    def batches(self, mode: str) -> Iterator[Batch]:
        """The same in every mode; read ahead from run to run, as from epoch to epoch."""
        if mode not in self.streams:
            self.streams[mode] = self.training_mode(mode).loader.epoch(0, until=sys.maxsize)
        return islice(self.streams[mode], self.steps)

    def held(self, mode: str) -> list[Batch]:
        """Those of a first run, on the device."""
        with closing(self.training_mode(mode).loader.epoch(0, until=sys.maxsize)) as batches:
            return [batch.to(self.device) for batch in islice(batches, self.steps)]

    def run(self, mode: str) -> None:
        """All steps of one way."""
        if mode == "backbone":
            detector = self.training_mode("live").trainer.detector
            for pixels in self.pixels:
                detector.features({PIXELS: pixels})
        elif mode == "memory":
            for batch in self.in_memory:
                self.training_mode("cached").trainer.take_step(batch)
        else:
            for batch in self.batches(mode):
                self.training_mode(mode).trainer.take_step(batch)


def extracted(name: str, options: argparse.Namespace) -> Path:
    """A store of the first images; made once."""
    document = json.loads(options.annotations.read_text())
    document["images"] = document["images"][: options.count]
    kept = {image["id"] for image in document["images"]}
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] in kept]
    few = options.out / "few.json"
    few.write_text(json.dumps(document))
    store: Path = options.out / f"{name}.zarr"
    if not store.exists():
        values = {"images": options.images, "annotations": few, "store": store, "backbone": name}
        values |= {"weights": "none", "image_size": options.image_size, "views": "base"}
        values |= {"on_bad_image": "skip", "device": options.device}
        extract(make_extract_config(values))
    return store


def make_config(spec: FeatureSpec, options: argparse.Namespace) -> TrainConfig:
    """The config, with the simple pyramid where there is only one map."""
    overrides = [*options.overrides, f"schedule.batch_size={options.batch}"]
    overrides.append(f"device={options.device}")
    if len(spec) == 1:
        overrides.append("detector.neck={kind: simple, channels: 64, num_levels: 5}")
    return load_train_config(options.config, overrides)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    bench = Bench(name, options)
    trained = (*TRAINED, *(f"partial_{cut}" for cut in filter(None, options.cuts.split(","))))
    modes = (*trained, *PARTS)
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    for turn in range(options.rounds + 1):
        for mode in modes:
            started = wall_seconds(bench.device)
            bench.run(mode)
            if turn:  # the first warms up
                seconds[mode].append(wall_seconds(bench.device) - started)
    images = sum(len(batch.targets) for batch in bench.in_memory)
    a_image = {mode: statistics.median(found) / images for mode, found in seconds.items()}
    limit = [1 + ratio for ratio in ratios(seconds, "backbone", "memory")]
    gain = ratios(seconds, "live", "cached")
    return {
        "backbone": name,
        "seconds_a_image": a_image,
        "live_to_cached": statistics.median(gain),
        "limit": statistics.median(limit),
        "share_of_limit": statistics.median(g / top for g, top in zip(gain, limit, strict=True)),
        "tuned_to_cached": a_image["tuned"] / a_image["cached"],
        "memory_to_cached": statistics.median(ratios(seconds, "memory", "cached")),
        "to_cached": {mode: statistics.median(ratios(seconds, mode, "cached")) for mode in trained},
        "to_tuned": {mode: statistics.median(ratios(seconds, mode, "tuned")) for mode in trained},
        "peak": {mode: peak_in_own_process(name, mode, options) for mode in trained},
    }


def ratios(seconds: dict[str, list[float]], one: str, other: str) -> list[float]:
    """Of two ways, round by round."""
    return [ours / theirs for ours, theirs in zip(seconds[one], seconds[other], strict=True)]


def peak_in_own_process(name: str, mode: str, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--peak-of", mode, "--backbones", name]
    for key in (
        "images",
        "annotations",
        "out",
        "config",
        "image_size",
        "images",
        "batch",
        "device",
    ):
        command += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
    for override in options.overrides:
        command += ["--set", override]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    peak: dict[str, float] = json.loads(found.stdout)
    return peak


def peak_of(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Megabytes of this process: at the end of two steps, and before anything was built."""
    device = choose_device(options.device)
    forget_peak(device)
    before = peak_megabytes(device)
    options.steps = 2
    Bench(name, options).run(options.peak_of)
    return {"megabytes": peak_megabytes(device), "megabytes_of_libraries": before}


if __name__ == "__main__":
    main()

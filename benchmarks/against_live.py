"""Training from the cache against the live frozen backbone and against fine-tuning it.

python benchmarks/against_live.py --images DIR --annotations train.json --out DIR \
    [--backbones tf_efficientnet_lite0,resnet50,convnext_base,vit_base_patch16_224] \
    [--config configs/retinanet_fpn_tiny.yaml] [--image-size 384] [--pictures 48] [--steps 6] \
    [--device cuda]

Backbones have random weights: only time and memory are measured. The pictures are extracted first.
Seconds a step are taken in turn, several rounds, in one process: `cached` (streamed from disk),
`live` (pictures decoded ahead in threads, frozen backbone, the same heads), `tuned` (backbone with
gradients), `memory` (heads on features that are there already: H), `backbone` (forward alone: B).
The arithmetic limit of live / cached is (B + H) / H. Peak memory is that of a process that does
nothing else. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from decoding import decoded_ahead
from device_clock import (
    add_device_option,
    describe_device,
    forget_peak,
    peak_megabytes,
    wall_seconds,
)
from torch import Tensor

from cachedet.backbone.frozen import FrozenBackbone, load_backbone
from cachedet.config import TrainConfig, load_train_config, make_extract_config
from cachedet.device import choose_device
from cachedet.extract import extract
from cachedet.extraction.inputs import InputLoader
from cachedet.store.manifest import library_versions
from cachedet.store.reader import FeatureStore
from cachedet.structures import Features, FeatureSpec, Targets
from cachedet.training.batch import Batch
from cachedet.training.loader import make_loader
from cachedet.training.trainer import Trainer, make_trainer

BACKBONES = "tf_efficientnet_lite0,resnet50,convnext_base,vit_base_patch16_224"
MODES = ("cached", "live", "tuned", "memory", "backbone")
TRAINED = ("cached", "live", "tuned")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbones", default=BACKBONES)
    parser.add_argument("--config", type=Path, default=Path("configs/retinanet_fpn_tiny.yaml"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak-of", choices=TRAINED, help="one step in this process, its memory")
    add_device_option(parser)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.peak_of:
        print(json.dumps(peak_of(options.backbones, options)))
        return
    results = [measure(name, options) for name in options.backbones.split(",")]
    facts = {"config": options.config.stem, "overrides": options.overrides, "batch": options.batch}
    facts |= {"cores": os.cpu_count(), "threads_of_torch": torch.get_num_threads()}
    facts |= {
        "machine": describe_device(choose_device(options.device)),
        "versions": library_versions(),
    }
    print(json.dumps({**facts, "image_size": options.image_size, "results": results}, indent=1))


class Bench:
    """One backbone, its store and one trainer for each way of training; each made when needed."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.store = FeatureStore.open(extracted(name, options))
        self.config = make_config(self.store.manifest.spec, options)
        self.loader = make_loader(self.config, self.store)
        self.name, self.images, self.image_size = name, options.images, options.image_size
        self.trainers: dict[str, Trainer] = {}
        self.steps = options.steps
        self.device = choose_device(options.device)

    @cached_property
    def backbone(self) -> FrozenBackbone:
        return load_backbone(
            self.name, weights="none", image_size=self.image_size, device=self.device
        )

    @cached_property
    def inputs(self) -> InputLoader:
        return InputLoader(
            paths=[self.images / file for file in self.store.truth.file_names],
            image_ids=[int(image) for image in self.store.truth.image_ids],
            image_size=self.image_size,
            pad_multiple=self.backbone.spec.pad_multiple,
            preprocessing=self.backbone.preprocessing,
        )

    @cached_property
    def in_memory(self) -> list[Batch]:
        return list(self.cached_batches())

    @cached_property
    def pixels(self) -> list[Tensor]:
        return [pixels for pixels, _ in self.decoded()]

    def rows(self) -> list[list[int]]:
        """The pictures of each step."""
        epochs = (self.loader.plan(epoch) for epoch in itertools.count())
        steps = itertools.islice(itertools.chain.from_iterable(epochs), self.steps)
        return [[int(row) for _, row in keys] for keys in steps]

    def cached_batches(self) -> Iterator[Batch]:
        epochs = (self.loader.batches(epoch) for epoch in itertools.count())
        yield from itertools.islice(itertools.chain.from_iterable(epochs), self.steps)

    def decoded(self) -> Iterator[tuple[Tensor, list[Targets]]]:
        """Pictures of the same steps."""
        steps = [[(row, "base") for row in rows] for rows in self.rows()]
        for pictures, pixels in zip(
            steps, decoded_ahead(self.inputs, steps, self.device), strict=True
        ):
            yield pixels, [self.store.targets(row, view) for row, view in pictures]

    def trainer(self, mode: str) -> Trainer:
        if mode not in self.trainers:
            torch.manual_seed(0)
            manifest = self.store.manifest
            self.trainers[mode] = make_trainer(self.config, manifest=manifest, total_steps=10_000)
        return self.trainers[mode]

    def run(self, mode: str) -> None:
        """All steps of one way."""
        if mode == "cached":
            for batch in self.cached_batches():
                self.trainer(mode).take_step(batch)
        elif mode == "memory":
            for batch in self.in_memory:
                self.trainer(mode).take_step(batch)
        elif mode == "backbone":
            for pixels in self.pixels:
                self.backbone(pixels)
        elif mode == "live":
            for pixels, targets in self.decoded():
                self.trainer(mode).take_step(Batch(features=self.backbone(pixels), targets=targets))
        else:
            self.tune()

    def tune(self) -> None:
        """Backbone and heads together; the backbone's normalisation keeps its statistics."""
        parameters = list(self.backbone.model.requires_grad_(True).parameters())
        optimizer = torch.optim.AdamW(parameters, lr=1e-6)
        for pixels, targets in self.decoded():
            optimizer.zero_grad(set_to_none=True)
            batch = Batch(features=self.tuned_features(pixels), targets=targets)
            self.trainer("tuned").take_step(batch)
            optimizer.step()
        self.backbone.model.requires_grad_(False)

    def tuned_features(self, pixels: Tensor) -> Features:
        """What the backbone gives, with gradients."""
        maps = self.backbone.model(pixels)
        if getattr(self.backbone.model, "output_fmt", None) == "NHWC":
            maps = [each.permute(0, 3, 1, 2) for each in maps]
        return dict(zip(self.backbone.spec.names, maps, strict=True))


def extracted(name: str, options: argparse.Namespace) -> Path:
    """A store of the first pictures; made once."""
    document = json.loads(options.annotations.read_text())
    document["images"] = document["images"][: options.pictures]
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
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for turn in range(options.rounds + 1):
        for mode in MODES:
            started = wall_seconds(bench.device)
            bench.run(mode)
            if turn:  # the first warms up
                seconds[mode].append(wall_seconds(bench.device) - started)
    pictures = sum(len(batch.targets) for batch in bench.in_memory)
    a_picture = {mode: statistics.median(found) / pictures for mode, found in seconds.items()}
    rounds = list(zip(*seconds.values(), strict=True))
    limit = [(b + h) / h for _, _, _, h, b in rounds]
    gain = [live / cached for cached, live, *_ in rounds]
    return {
        "backbone": name,
        "seconds_a_picture": a_picture,
        "live_to_cached": statistics.median(gain),
        "limit": statistics.median(limit),
        "share_of_limit": statistics.median(g / top for g, top in zip(gain, limit, strict=True)),
        "tuned_to_cached": a_picture["tuned"] / a_picture["cached"],
        "memory_to_cached": statistics.median(h / cached for cached, _, _, h, _ in rounds),
        "peak": {mode: peak_in_own_process(name, mode, options) for mode in TRAINED},
    }


def peak_in_own_process(name: str, mode: str, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--peak-of", mode, "--backbones", name]
    for key in (
        "images",
        "annotations",
        "out",
        "config",
        "image_size",
        "pictures",
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

"""Steps per second with features from a store against the same steps with them in memory.

python benchmarks/stall.py --store STORE [--configs a.yaml,b.yaml] [--residencies stream,ram] \
    [--device cuda]
python benchmarks/stall.py --synthetic DIR    maps of ResNet-50 size at 512 px, generated there

Every pair of runs takes the same steps on the same batches in one process: once with the decoded
batches in memory, once through the loader, which reads ahead from run to run as it does from epoch
to epoch. Who goes first changes from pair to pair. Prints one JSON object; a ratio of 1 means that
reading costs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from device_clock import add_device_option, describe_device, wall_seconds
from synthetic import contents_of, make_manifest

from cachedet.config.run import TrainConfig, load_train_config
from cachedet.device import choose_device
from cachedet.loading.loader import FeatureLoader, make_run_loader
from cachedet.loading.sampling import PlannedBatch
from cachedet.store.codecs.statistics import FeatureStatistics
from cachedet.store.format.manifest import library_versions
from cachedet.store.reader import FeatureStore
from cachedet.store.writer import StoreWriter
from cachedet.structures import Annotations, Batch, CategoryMap, Features, FeatureSpec, LevelSpec
from cachedet.training.trainer import Trainer, make_trainer

TINY = "configs/retinanet_fpn_tiny.yaml,configs/cascade_rcnn_fpn_tiny.yaml"
RESNET50 = FeatureSpec(
    (
        LevelSpec(name="C3", channels=512, stride=8),
        LevelSpec(name="C4", channels=1024, stride=16),
        LevelSpec(name="C5", channels=2048, stride=32),
    )
)
SIDE = 512  # pixels
BOXES = 15  # of an image, as in bccd
_MEMORY = 8 << 30  # bytes of decoded batches that are held at most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--store", type=Path)
    where.add_argument("--synthetic", type=Path, metavar="DIR")
    parser.add_argument("--codec", default="int8", help="of --synthetic")
    parser.add_argument("--images", type=int, default=64, help="of --synthetic")
    parser.add_argument("--configs", default=TINY)
    parser.add_argument("--residencies", default="stream,ram")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--steps", type=int, default=12, help="of each run")
    parser.add_argument("--pairs", type=int, default=5)
    add_device_option(parser)
    options = parser.parse_args()
    root = options.store
    if options.synthetic is not None:
        root = options.synthetic / f"resnet50-{options.codec}-{options.images}.zarr"
        if not root.exists():
            build(root, codec=options.codec, images=options.images)
    store = FeatureStore.open(root)
    results = [
        {"config": name, "residency": residency, **measure(store, config, options)}
        for name in options.configs.split(",")
        for residency in options.residencies.split(",")
        for config in [
            load_train_config(
                Path(name),
                [*options.overrides, f"residency={residency}", f"device={options.device}"],
            )
        ]
    ]
    print(
        json.dumps(
            {
                "results": results,
                "store": root.name,
                "codec": store.manifest.codec,
                "steps": options.steps,
                "pairs": options.pairs,
                "overrides": options.overrides,
                "cores": os.cpu_count(),
                "threads_of_torch": torch.get_num_threads(),
                "machine": describe_device(choose_device(options.device)),
                "versions": library_versions(),
            },
            indent=1,
        )
    )


def measure(store: FeatureStore, config: TrainConfig, options: Any) -> dict[str, Any]:
    """Ratios of steps per second, through the loader over in memory, and what it waited."""
    torch.manual_seed(0)
    loader = make_run_loader(config, store)
    trainer = make_trainer(config, manifest=store.manifest, total_steps=1_000_000)
    held = hold(loader, steps=options.steps)
    planned = [
        PlannedBatch(keys, number=number) for number, keys in enumerate(loader.plan(0)[: len(held)])
    ]
    ratios, waits, seconds = [], [], []
    # One run more than is timed: what waits at the end of the last one was read in its time.
    with closing(loader.read_ahead(planned * (options.pairs + 2))) as streamed:
        for _ in planned:  # warms up
            trainer.take_step(next(streamed))
        for pair in range(options.pairs):
            clocks = {"memory": Clock(), "store": Clock()}
            for name in sorted(clocks, reverse=bool(pair % 2)):
                batches = iter(held) if name == "memory" else streamed
                clocks[name].run(trainer, batches, steps=len(held))
            ratios.append(clocks["memory"].total / clocks["store"].total)
            waits.append(clocks["store"].waited / clocks["store"].total)
            seconds.append(clocks["memory"].total / len(held))
    images = [len(batch.targets) for batch in held]
    return {
        "steps_per_second_to_memory": statistics.median(ratios),
        "each_pair": ratios,
        "share_of_time_waiting": statistics.median(waits),
        "seconds_per_step_in_memory": statistics.median(seconds),
        "images_per_step": statistics.mean(images),
        "decoded_megabytes_per_image": held[0].nbytes / images[0] / 1e6,
        "stored_kilobytes_per_image": store.nbytes / len(store) / len(store.manifest.views) / 1e3,
    }


def hold(loader: FeatureLoader, *, steps: int) -> list[Batch]:
    """The first batches of epoch 0, as many as fit."""
    held: list[Batch] = []
    with closing(loader.epoch(0)) as batches:
        for batch in batches:
            held.append(batch)
            if len(held) == steps or sum(b.nbytes for b in held) > _MEMORY:
                break
    return held


class Clock:
    """Seconds of a run, and of waiting for its batches."""

    total = 0.0
    waited = 0.0

    def run(self, trainer: Trainer, batches: Iterator[Batch], *, steps: int) -> None:
        started = wall_seconds(trainer.device)
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - asked
            trainer.take_step(batch)
        self.total = wall_seconds(trainer.device) - started


def build(root: Path, *, codec: str, images: int) -> None:
    """A store of random maps that are half zeros, as after a ReLU."""
    rng = np.random.default_rng(0)
    annotations = make_annotations(images, rng)
    manifest = make_manifest(spec=RESNET50, annotations=annotations, image_size=SIDE, codec=codec)
    seen = FeatureStatistics()
    seen.add(draw_features(rng, 2))
    writer = StoreWriter.open(
        root,
        manifest=manifest,
        annotations=annotations,
        contents=contents_of(annotations),
        fit=lambda unfitted: unfitted.fit(seen.levels),
    )
    for block in writer.missing_blocks():
        packed = [
            writer.encode(block, draw_features(rng, 1), start=start)
            for start in range(len(block.rows))
        ]
        writer.commit(block, packed)


def draw_features(rng: np.random.Generator, count: int) -> Features:
    return {
        name: torch.from_numpy(rng.standard_normal((count, *shape), dtype=np.float32)).relu_()
        for name, shape in RESNET50.map_shapes((SIDE, SIDE)).items()
    }


def make_annotations(images: int, rng: np.random.Generator) -> Annotations:
    """Square images with boxes of three classes."""
    corners = rng.uniform(0, SIDE - 100, (images * BOXES, 2))
    sides = rng.uniform(20, 100, (images * BOXES, 2))
    return Annotations(
        image_ids=np.arange(images, dtype=np.int64),
        file_names=tuple(f"{n:012d}.jpg" for n in range(images)),
        sizes_hw=np.full((images, 2), SIDE, dtype=np.int64),
        offsets=np.arange(0, (images + 1) * BOXES, BOXES, dtype=np.int64),
        boxes=np.concatenate([corners, corners + sides], axis=1),
        labels=rng.integers(3, size=images * BOXES),
        crowd=np.zeros(images * BOXES, dtype=np.bool_),
        areas=sides.prod(axis=1),
        categories=CategoryMap(ids=(1, 2, 3), names=("a", "b", "c")),
    )


if __name__ == "__main__":
    main()

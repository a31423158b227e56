"""Seconds of a training step of detector heads on features in memory. Prints one JSON object.

python benchmarks/heads.py [--configs configs/a.yaml,configs/b.yaml] [--set key=value]
    [--features C3:40:8,C4:112:16,C5:320:32] [--size 288x384] [--batch 8] [--device cuda]

Features and boxes are random (15 boxes an image, as in bccd). All configs are timed in turn in
every round, so the ratios hold on a noisy machine; the first config is what the others are
compared with.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import torch
from device_clock import add_device_option, describe_device, wall_seconds

from cachedet.config.run import load_train_config
from cachedet.detector.build import build_detector
from cachedet.device import choose_device
from cachedet.model import parse_features, parse_size
from cachedet.store.format.manifest import library_versions
from cachedet.structures import Batch, FeatureSpec, SizeHW, Targets

TINY = [
    Path("configs") / f"{kind}_{neck}_tiny.yaml"
    for kind in ("retinanet", "faster_rcnn", "cascade_rcnn")
    for neck in ("fpn", "nasfpn")
]
NUM_CLASSES = 3
BOXES = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", default=",".join(map(str, TINY)))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--features", default="C3:40:8,C4:112:16,C5:320:32")
    parser.add_argument("--size", default="288x384", help="height x width in pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    add_device_option(parser)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = choose_device(options.device)
    spec = parse_features(options.features)
    batch = make_batch(spec, parse_size(options.size), options.batch, device)
    names = options.configs.split(",")
    steps = {name: make_step(Path(name), options.overrides, spec, device) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.rounds + 2):
        for name, step in steps.items():
            started = wall_seconds(device)
            step(batch)
            if turn > 1:  # the first two warm up
                seconds[name].append(wall_seconds(device) - started)
    first = seconds[names[0]]
    print(
        json.dumps(
            {
                "batch": options.batch,
                "size": options.size,
                "features": options.features,
                "overrides": options.overrides,
                "results": {
                    name: {
                        "seconds_per_step": statistics.median(found),
                        "to_first": statistics.median(
                            own / other for own, other in zip(found, first, strict=True)
                        ),
                    }
                    for name, found in seconds.items()
                },
                "cores": os.cpu_count(),
                "threads_of_torch": torch.get_num_threads(),
                "machine": describe_device(device),
                "versions": library_versions(),
            },
            indent=1,
        )
    )


def make_batch(spec: FeatureSpec, size_hw: SizeHW, count: int, device: torch.device) -> Batch:
    features = {
        name: torch.randn(count, *shape).to(device)
        for name, shape in spec.map_shapes(size_hw).items()
    }
    targets = []
    for n in range(count):
        corners = torch.rand(BOXES, 2) * torch.tensor([size_hw[1] - 80.0, size_hw[0] - 80.0])
        boxes = torch.cat([corners, corners + 20 + torch.rand(BOXES, 2) * 60], dim=1)
        targets.append(
            Targets(
                image_id=n,
                size_hw=size_hw,
                boxes=boxes,
                labels=torch.randint(NUM_CLASSES, (BOXES,)),
                crowd=torch.zeros(BOXES, dtype=torch.bool),
            )
        )
    return Batch(features=features, targets=[own.to(device) for own in targets])


def make_step(path: Path, overrides: list[str], spec: FeatureSpec, device: torch.device) -> Any:
    config = load_train_config(path, overrides)
    detector = build_detector(config.detector, spec=spec, num_classes=NUM_CLASSES)
    detector.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-4)

    def step(batch: Batch) -> None:
        """What `Trainer.take_step` does."""
        batch = batch.to(device)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(detector(batch.features, batch.targets).values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()

    return step


if __name__ == "__main__":
    main()

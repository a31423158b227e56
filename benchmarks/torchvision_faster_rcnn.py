"""Our tiny Faster R-CNN on a cache against torchvision's FasterRCNN on the live frozen backbone.

python benchmarks/torchvision_faster_rcnn.py --images DIR \
    --train train.zarr --val val.zarr --out DIR [--steps 6] [--epochs 0] [--seed 0] [--device cuda]

torchvision's detector is what a person would build without cachedet: FPN of 256 channels and
default heads on the same EfficientNet-lite0 with the same weights, images decoded in each step.
Steps of the same images are timed in turn: torchvision live, torchvision on our cached features
(its backbone's part taken away), ours cached. The two ratios multiply to the whole gain: what the
cache brings, and what lean heads bring. With --epochs both are trained and scored as well. On CUDA
neither decoding nor reading is timed: threads can do both ahead of a step, and as fast.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
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
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from cachedet.backbone.frozen import FrozenBackbone, load_backbone
from cachedet.config.run import EvalConfig, load_train_config
from cachedet.detector.end_to_end import PIXELS
from cachedet.device import choose_device
from cachedet.evaluate import evaluate
from cachedet.evaluation.metrics import CocoScores, score_detections
from cachedet.live.image_loader import ImageLoader
from cachedet.live.modes import inputs_of
from cachedet.loading.loader import FeatureLoader
from cachedet.loading.targets import geometry_of, targets_of
from cachedet.store.format.manifest import library_versions
from cachedet.store.reader import FeatureStore
from cachedet.structures import Batch, Detections, Features, FeatureSpec, Targets
from cachedet.train import train
from cachedet.training.trainer import make_trainer

BATCH = 4
CONFIG = Path("configs/faster_rcnn_fpn_tiny.yaml")


class LiveFPN(nn.Module):
    """torchvision's FPN on a frozen backbone; `cached` features take the backbone's place."""

    out_channels = 256

    def __init__(self, backbone: FrozenBackbone, spec: FeatureSpec) -> None:
        super().__init__()
        self.frozen = [backbone]  # in a list: not a submodule, so never trained or saved
        self.fpn = FeaturePyramidNetwork(
            [level.channels for level in spec], 256, extra_blocks=LastLevelMaxPool()
        )
        self.cached: Features | None = None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.cached if self.cached is not None else self.frozen[0](images)
        numbered = {str(n): maps for n, maps in enumerate(features.values())}
        found: dict[str, Tensor] = self.fpn(numbered)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("images", "train", "val", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    add_device_option(parser)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    store = FeatureStore.open(options.train)
    training_mode = TrainingMode(store, options.images, choose_device(options.device))
    result: dict[str, Any] = {"seconds_per_image": training_mode.time_steps(options.steps)}
    if options.epochs:
        ways = {"torchvision": training_mode.train_torchvision, "cachedet": train_ours}
        for name, train_one in ways.items():
            result[name] = train_one(options)
            # Hours: kept if the next one fails.
            print(json.dumps({name: result[name]}), file=sys.stderr)
    print(
        json.dumps(
            {
                **result,
                "batch": BATCH,
                "epochs": options.epochs,
                "seed": options.seed,
                "cores": os.cpu_count(),
                "threads_of_torch": torch.get_num_threads(),
                "machine": describe_device(training_mode.device),
                "versions": library_versions(),
            },
            indent=1,
        )
    )


class TrainingMode:
    """torchvision's detector, ours, and batches for both."""

    def __init__(self, store: FeatureStore, images: Path, device: torch.device) -> None:
        manifest = store.manifest
        self.store, self.device = store, device
        self.backbone = load_backbone(
            manifest.backbone,
            levels=manifest.spec.names,
            image_size=manifest.image_size,
            device=device,
        )
        self.inputs = inputs_of(store, images)
        self.loader = FeatureLoader(
            store,
            views=manifest.views,
            levels=manifest.spec.names,
            batch_size=BATCH,
            seed=0,
            device=device,
        )
        self.images_ahead = ImageLoader(
            plans=self.loader,
            views=manifest.views,
            store=store,
            inputs=self.inputs,
            device=device,
            fresh=False,
        )
        self.live = LiveFPN(self.backbone, manifest.spec)
        self.theirs = FasterRCNN(
            self.live,
            num_classes=len(manifest.categories) + 1,
            rpn_anchor_generator=_anchors(),
            min_size=1,  # the images come in at their size, normalised
            max_size=10_000,
            image_mean=[0.0] * 3,
            image_std=[1.0] * 3,
            box_score_thresh=0.01,
        ).to(device)
        self.theirs.transform.resize = lambda image, target: (image, target)
        self.optimizer = torch.optim.AdamW(
            [p for p in self.theirs.parameters() if p.requires_grad], lr=5e-4, weight_decay=0.05
        )

    def time_steps(self, steps: int) -> dict[str, Any]:
        ours = make_trainer(
            load_train_config(CONFIG, [f"device={self.device}"]),
            manifest=self.store.manifest,
            total_steps=1000,
        )
        plan = [keys for keys in self.loader.plan(0) if len(keys) == BATCH][: steps + 1]
        ways: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], object]]] = {
            "torchvision_live": (
                self.images,
                lambda pixels, keys: self.their_step(pixels, self.targets(keys)),
            ),
            "torchvision_cached": (
                self.loader.read,
                lambda batch, _: self.their_cached_step(batch),
            ),
            "cachedet": (self.loader.read, lambda batch, _: ours.take_step(batch)),
        }
        is_ahead = self.device.type == "cuda"
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number, keys in enumerate(plan):
            order = list(ways)[number % 3 :] + list(ways)[: number % 3]  # nobody is always first
            for name in order:
                prepare, step = ways[name]
                started = wall_seconds(self.device)
                made = prepare(keys)
                started = wall_seconds(self.device) if is_ahead else started
                step(made, keys)
                if number:  # the first warms up
                    seconds[name].append((wall_seconds(self.device) - started) / BATCH)

        def ratio(one: str, other: str) -> float:
            pairs = zip(seconds[one], seconds[other], strict=True)
            return statistics.median(a / b for a, b in pairs)

        return {
            **{name: statistics.median(found) for name, found in seconds.items()},
            "whole_gain": ratio("torchvision_live", "cachedet"),
            "gain_of_the_cache": ratio("torchvision_live", "torchvision_cached"),
            "gain_of_lean_heads": ratio("torchvision_cached", "cachedet"),
        }

    def images(self, keys: Any) -> Tensor:
        return torch.stack([self.inputs.load(row, view) for row, view in self.named(keys)])

    def named(self, keys: Any) -> list[tuple[int, str]]:
        """Row and view of each image."""
        views = self.store.manifest.views
        return [(int(row), views[int(view)]) for view, row in keys]

    def targets(self, keys: Any) -> list[Targets]:
        return [targets_of(self.store, row, view) for row, view in self.named(keys)]

    def their_cached_step(self, batch: Batch) -> float:
        return self.their_step(self.in_place_of_images(batch), batch.targets)

    def their_step(self, images: Tensor, targets: list[Targets]) -> float:
        wanted = [_their_target(own.to(self.device)) for own in targets]
        losses = self.theirs.train()(list(images.to(self.device)), wanted)
        self.live.cached = None
        total = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.theirs.parameters(), 10.0)
        self.optimizer.step()
        return total.item()

    def in_place_of_images(self, batch: Batch) -> Tensor:
        """Empty images of the size the features belong to; the next forward takes those."""
        self.live.cached = batch.features
        finest = self.store.manifest.spec.levels[0]
        height, width = batch.features[finest.name].shape[-2:]
        size = (len(batch.targets), 3, height * finest.stride, width * finest.stride)
        return torch.zeros(size, device=self.device)

    def train_torchvision(self, options: argparse.Namespace) -> dict[str, Any]:
        """As many epochs as ours, with the same warm-up and cosine."""
        total = sum(len(self.loader.plan(epoch)) for epoch in range(options.epochs))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=5e-4, total_steps=total, pct_start=min(0.3, 100 / total)
        )
        forget_peak(self.device)
        started = wall_seconds(self.device)
        for batch in self.images_ahead.epoch(0, until=options.epochs):
            self.their_step(batch.features[PIXELS], batch.targets)
            schedule.step()
        seconds = wall_seconds(self.device) - started
        peak = peak_megabytes(self.device)
        return {
            "seconds": seconds,
            "peak_megabytes": peak,
            **_figures(score_detections(*self.their_detections(options.val))),
        }

    @torch.no_grad()
    def their_detections(self, val: Path) -> tuple[Any, list[Detections]]:
        """On the validation store's features: the same as from the images (law L3)."""
        store = FeatureStore.open(val)
        loader = FeatureLoader(
            store,
            views=["base"],
            levels=store.manifest.spec.names,
            batch_size=1,
            seed=0,
            device=self.device,
        )
        self.theirs.eval()
        found = {}
        for keys, batch in zip(loader.plan(0), loader.epoch(0), strict=True):
            row = int(keys[0, 1])
            output = self.theirs(list(self.in_place_of_images(batch)))[0]
            found[row] = Detections(
                image_id=batch.image_ids[0],
                boxes=geometry_of(store, row, "base").boxes_to_image(output["boxes"]),
                scores=output["scores"].cpu(),
                labels=output["labels"].cpu() - 1,
            )
        return store.annotations, [found[row] for row in range(len(store))]


def train_ours(options: argparse.Namespace) -> dict[str, Any]:
    overrides = [f"schedule.epochs={options.epochs}", "eval_every=0", f"seed={options.seed}"]
    overrides.append(f"device={options.device}")
    device, run = choose_device(options.device), options.out / f"cachedet-{options.seed}"
    forget_peak(device)
    started = wall_seconds(device)
    train(
        load_train_config(CONFIG, [*overrides, f"schedule.batch_size={BATCH}"]),
        train_store=options.train,
        val_store=options.val,
        run=run,
    )
    seconds = wall_seconds(device) - started
    peak = peak_megabytes(device)
    scores = evaluate(run, store=options.val, config=EvalConfig(device=options.device)).scores
    return {"seconds": seconds, "peak_megabytes": peak, **_figures(scores)}


def _figures(scores: CocoScores) -> dict[str, float]:
    return {"ap": scores.ap, "ap50": scores.ap50, "ap75": scores.ap75}


def _anchors() -> Any:
    from torchvision.models.detection.rpn import AnchorGenerator

    sizes = ((32,), (64,), (128,), (256,))  # strides 8 to 64
    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))


def _their_target(targets: Targets) -> dict[str, Tensor]:
    usable = ~targets.crowd
    return {"boxes": targets.boxes[usable], "labels": targets.labels[usable] + 1}


if __name__ == "__main__":
    main()

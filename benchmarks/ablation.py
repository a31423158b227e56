"""Which augmentation survives the cache: views and feature-space augmentation against live pixels.

python benchmarks/ablation.py --images DIR --train train.zarr --val val.zarr --out DIR \
    [--epochs 20] [--seeds 0,1,2] [--only "none,jitter 2"] [--config CONFIG] [--device cuda]

The training store needs the views base, hflip and jitter draws of one range; `live` decodes the
images and runs the frozen backbone in every step, each time with a new draw of the same recipe
(draws that no store holds: their numbers follow those of the store). All take the same number of
steps. A run that is in DIR already is read, not repeated. AP is the last epoch's. Seconds are those
of the processor, on CUDA those of the clock. Prints one JSON object on standard output and a
Markdown table on standard error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from device_clock import (
    add_device_option,
    busy_name,
    busy_seconds,
    describe_device,
    forget_peak,
    peak_megabytes,
)

from cachedet.config.run import TrainConfig, load_train_config
from cachedet.data.views import MOST_DRAWS, view_family
from cachedet.detector.end_to_end import EndToEndDetector
from cachedet.detector.rcnn import RCNN
from cachedet.detector.retinanet import RetinaNet
from cachedet.device import choose_device
from cachedet.evaluation.inference import detect_store, stored_batches
from cachedet.evaluation.metrics import score_detections
from cachedet.live.modes import make_training_mode
from cachedet.loading.loader import BatchLoader, make_planner, make_run_loader
from cachedet.store.format.manifest import library_versions
from cachedet.store.reader import FeatureStore
from cachedet.training.trainer import Trainer, make_trainer

FIGURES = ("ap", "ap50", "ap75")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One row of the table.

    Attributes:
        draws: of the store's jitter views that take part.
        weights: of the view families.
        augment: keys of the config's `augment` section.
        live: images and backbone in every step, jitter drawn afresh.
    """

    weights: dict[str, float]
    draws: int = 0
    augment: tuple[str, ...] = ()
    live: bool = False

    def views(self, store: FeatureStore) -> dict[str, float]:
        """Weight of each view of the store that takes part."""
        jitter = [name for name in store.manifest.views if view_family(name) == "jitter"]
        if self.draws > len(jitter):
            raise SystemExit(f"the store has {len(jitter)} jitter views, expected {self.draws}")
        weights = {name: weight for name, weight in self.weights.items() if name != "jitter"}
        share = self.weights.get("jitter", 0.0) / max(self.draws, 1)
        return weights | dict.fromkeys(jitter[: self.draws], share)


BOTH = {"base": 1.0, "hflip": 1.0}
WITH_TWO = BOTH | {"jitter": 2.0}  # half of the showings are jittered
CONDITIONS = {
    "none": Condition(weights={"base": 1.0}),
    "feature flip": Condition(weights={"base": 1.0}, augment=("flip=0.5",)),
    "cached flip": Condition(weights=BOTH),
    "jitter 2": Condition(weights=WITH_TWO, draws=2),
    "jitter 4": Condition(weights=WITH_TWO, draws=4),
    "jitter 8": Condition(weights=WITH_TWO, draws=8),
    "cached flip + translate": Condition(weights=BOTH, augment=("translate=0.5",)),
    "cached flip + crop": Condition(weights=BOTH, augment=("crop=0.5",)),
    "jitter 3 without flip": Condition(weights={"base": 1.0, "jitter": 3.0}, draws=3),
    "jitter 3 without flip + feature flip": Condition(
        weights={"base": 1.0, "jitter": 3.0}, draws=3, augment=("flip=0.5",)
    ),
    "half jitter 3 without flip + feature flip": Condition(
        weights={"base": 1.0, "jitter": 1.0}, draws=3, augment=("flip=0.5",)
    ),
    "most jitter 3 without flip + feature flip": Condition(
        weights={"base": 2.0, "jitter": 3.0}, draws=3, augment=("flip=0.5",)
    ),
    "jitter 4 alone + feature flip": Condition(
        weights={"jitter": 1.0}, draws=4, augment=("flip=0.5",)
    ),
    "jitter 2 + feature flip + translate": Condition(
        weights=WITH_TWO, draws=2, augment=("flip=0.5", "translate=0.5")
    ),
    "jitter 4 alone": Condition(weights={"jitter": 1.0}, draws=4),
    "jitter 2 + feature flip": Condition(weights=WITH_TWO, draws=2, augment=("flip=0.5",)),
    "jitter 2 + translate": Condition(weights=WITH_TWO, draws=2, augment=("translate=0.5",)),
    "live flip": Condition(weights=BOTH, live=True),
    "live jitter": Condition(weights=WITH_TWO, draws=1, live=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("images", "train", "val", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/retinanet_fpn_tiny.yaml"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="", help="names, with commas; default: all")
    add_device_option(parser)
    options = parser.parse_args()
    cached = [name for name in FeatureStore.open(options.train).manifest.views if "jitter" in name]
    if len(cached) + options.epochs > MOST_DRAWS:
        raise SystemExit(f"{MOST_DRAWS} draws are too few for {len(cached)} and one an epoch")
    only = [name.strip() for name in options.only.split(",")] if options.only else list(CONDITIONS)
    if unknown := [name for name in only if name not in CONDITIONS]:
        raise SystemExit(f"unknown {unknown[0]!r}; known: {', '.join(CONDITIONS)}")
    rows = [summarise(name, CONDITIONS[name], options) for name in only]
    print_table(rows)
    facts = {"train": options.train.name, "epochs": options.epochs, "config": options.config.stem}
    facts |= {"threads_of_torch": torch.get_num_threads()}
    facts |= {"machine": describe_device(choose_device(options.device))}
    print(json.dumps({**facts, "versions": library_versions(), "rows": rows}, indent=1))


def summarise(name: str, condition: Condition, options: argparse.Namespace) -> dict[str, Any]:
    runs = [run_once(name, condition, seed, options) for seed in map(int, options.seeds.split(","))]
    row: dict[str, Any] = {"name": name, "runs": runs}
    for figure in FIGURES:
        found = [run[figure] for run in runs]
        row[figure] = statistics.mean(found)
        row[f"{figure}_spread"] = max(found) - min(found)
    counted = busy_name(choose_device(options.device))
    row["seconds_an_epoch"] = statistics.mean(run[counted] for run in runs)
    row["seconds_an_epoch"] /= options.epochs
    row["bytes_a_image"] = runs[0]["bytes_a_image"]
    return row


def run_once(
    name: str, condition: Condition, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    done: Path = options.out / f"{name.replace(' + ', '-').replace(' ', '_')}-{seed}.json"
    if done.exists():
        row: dict[str, Any] = json.loads(done.read_text())
        return row
    options.out.mkdir(parents=True, exist_ok=True)
    store, val = FeatureStore.open(options.train), FeatureStore.open(options.val)
    overrides = [f"seed={seed}", f"schedule.epochs={options.epochs}", f"device={options.device}"]
    overrides += [f"augment.{text}" for text in condition.augment]
    config = load_train_config(options.config, overrides)
    config = config.model_copy(update={"views": condition.views(store)})
    device = choose_device(options.device)
    forget_peak(device)
    before = busy_seconds(device)
    scores = train_and_score(config, condition, store, val, options)
    row = {
        "seed": seed,
        **{figure: getattr(scores, figure) for figure in FIGURES},
        busy_name(device): busy_seconds(device) - before,
        "peak_megabytes": peak_megabytes(device),
        "bytes_a_image": 0 if condition.live else bytes_a_image(store, condition),
    }
    done.write_text(json.dumps(row))
    return row


def train_and_score(
    config: TrainConfig,
    condition: Condition,
    store: FeatureStore,
    val: FeatureStore,
    options: argparse.Namespace,
) -> Any:
    trainer, loader = make_training(config, condition, store, options)
    epochs = range(config.schedule.epochs)
    for epoch in epochs:
        for batch in loader.epoch(epoch):
            trainer.take_step(batch)
        print(f"epoch {epoch + 1}/{len(epochs)}", file=sys.stderr)
    levels = store.manifest.spec.names
    batches = stored_batches(val, levels=levels, batch_size=8, device=trainer.device)
    # live as well: features of the store are those of the images (law L3)
    detections = detect_store(heads_of(trainer), val, batches=batches)
    return score_detections(val.annotations, detections)


def make_training(
    config: TrainConfig, condition: Condition, store: FeatureStore, options: argparse.Namespace
) -> tuple[Trainer, BatchLoader]:
    planner = make_planner(config, store)
    total = sum(len(planner.plan(epoch)) for epoch in range(config.schedule.epochs))
    if condition.live:
        weights = "auto" if store.manifest.weights.startswith("package") else "none"
        training_mode = make_training_mode(
            "live", config, store=store, images=options.images, weights=weights, total_steps=total
        )
        return training_mode.trainer, training_mode.loader
    torch.manual_seed(config.seed)
    trainer = make_trainer(config, manifest=store.manifest, total_steps=total)
    return trainer, make_run_loader(config, store)


def heads_of(trainer: Trainer) -> RetinaNet | RCNN:
    detector = trainer.detector
    return detector.heads if isinstance(detector, EndToEndDetector) else detector


def bytes_a_image(store: FeatureStore, condition: Condition) -> float:
    """Of all views that take part; every view of the store costs about the same."""
    of_view = store.nbytes / len(store) / len(store.manifest.views)
    return of_view * len(condition.views(store))


def print_table(rows: list[dict[str, Any]]) -> None:
    titles = "condition | AP | AP50 | AP75 | kB an image | seconds an epoch"
    print(f"| {titles} |", file=sys.stderr)
    print("|---" * 6 + "|", file=sys.stderr)
    for row in rows:
        cells = [f"{row[f]:.3f} ({row[f'{f}_spread']:.3f})" for f in FIGURES]
        cells += [f"{row['bytes_a_image'] / 1e3:.0f}", f"{row['seconds_an_epoch']:.1f}"]
        print("| " + " | ".join([row["name"], *cells]) + " |", file=sys.stderr)


if __name__ == "__main__":
    main()

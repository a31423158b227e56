"""Relabelling a store: seconds, and whether a byte of its features changed. Prints one JSON object.

python benchmarks/relabel.py --out DIR [--images 10000] [--boxes 7]

The store is whole and synthetic: tiny maps, real shards and commit records. A tenth of the images
get one box moved, and a class is added; then every second image leaves, and all come back. The
annotations are read from COCO files, as users do it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from synthetic import contents_of, make_manifest

from cachedet.evaluation.metrics import ground_truth_json
from cachedet.relabel import relabel
from cachedet.store.format.manifest import library_versions
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store
from cachedet.store.writer import StoreWriter
from cachedet.structures import Annotations, CategoryMap, FeatureSpec, LevelSpec

SPEC = FeatureSpec((LevelSpec(name="C5", channels=4, stride=32),))
HEIGHT, WIDTH, CLASSES = 48, 64, 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--boxes", type=int, default=7, help="of an image")
    options = parser.parse_args()
    root, corrected = options.out / "relabel.zarr", options.out / "corrected.json"
    shutil.rmtree(root, ignore_errors=True)
    annotations = make_annotations(options.images, options.boxes)
    build(root, annotations)
    corrected.write_text(json.dumps(correct(ground_truth_json(annotations), options.boxes)))
    before = digest_features(root)
    started, worked = time.perf_counter(), time.process_time()
    report = relabel(root, annotations=corrected)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
    assert report.changes is not None
    halved = options.out / "halved.json"
    halved.write_text(json.dumps(halve(json.loads(corrected.read_text()))))
    leaves = measure(lambda: relabel(root, annotations=halved, withdraw=True))
    assert len(FeatureStore.open(root)) == (options.images + 1) // 2
    comes_back = measure(lambda: relabel(root, annotations=corrected))
    result = {
        "images": report.images,
        "boxes": report.boxes,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,  # less, where other programs want the core too
        "withdraw": leaves,
        "bring_back": comes_back,
        "changes": report.changes.to_json(),
        "feature_bytes": FeatureStore.open(root).nbytes,
        "no_feature_byte_changed": digest_features(root) == before,
        "verified_deep": verify_store(root, deep=True).is_good,
        "machine": platform.machine(),
        "versions": library_versions(),
    }
    print(json.dumps(result, indent=1))


def measure(act: Callable[[], object]) -> dict[str, float]:
    started, worked = time.perf_counter(), time.process_time()
    act()
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - worked,
    }


def halve(values: dict[str, Any]) -> dict[str, Any]:
    values["images"] = values["images"][::2]
    kept = {image["id"] for image in values["images"]}
    values["annotations"] = [box for box in values["annotations"] if box["image_id"] in kept]
    return values


def make_annotations(images: int, boxes: int) -> Annotations:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 0.5, (images * boxes, 2)) * (WIDTH, HEIGHT)
    sides = rng.uniform(4, 20, (images * boxes, 2))
    return Annotations(
        image_ids=np.arange(images, dtype=np.int64),
        file_names=tuple(f"{row:09}.jpg" for row in range(images)),
        sizes_hw=np.full((images, 2), (HEIGHT, WIDTH), dtype=np.int64),
        offsets=np.arange(images + 1, dtype=np.int64) * boxes,
        boxes=np.concatenate([corners, corners + sides], axis=1),
        labels=rng.integers(0, CLASSES, images * boxes),
        crowd=np.zeros(images * boxes, dtype=np.bool_),
        areas=sides.prod(axis=1),
        categories=CategoryMap(
            ids=tuple(range(1, CLASSES + 1)), names=tuple(f"class {n}" for n in range(CLASSES))
        ),
    )


def build(root: Path, annotations: Annotations) -> None:
    writer = StoreWriter.open(
        root,
        manifest=make_manifest(spec=SPEC, annotations=annotations, image_size=64, codec="fp16"),
        annotations=annotations,
        contents=contents_of(annotations),
        fit=lambda codec: codec,
    )
    generator = torch.Generator().manual_seed(0)
    for block in writer.blocks:
        shapes = SPEC.map_shapes(block.bucket).items()
        writer.write(
            block, {k: torch.randn(len(block.rows), *s, generator=generator) for k, s in shapes}
        )


def correct(values: dict[str, Any], boxes: int) -> dict[str, Any]:
    for box in values["annotations"][:: 10 * boxes]:
        box["bbox"][0] += 1
    values["categories"].append({"id": CLASSES + 1, "name": "new"})
    return values


def digest_features(root: Path) -> str:
    """Over every file of the store that is not its labels: shards, records, zarr.json, images."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_file() and name != "manifest.json" and not name.startswith("truth-"):
            digest.update(f"{name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()

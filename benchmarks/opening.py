"""Opening a store of 120,000 images: seconds and memory. Prints one JSON object.

python benchmarks/opening.py --out DIR [--images 120000]

The blocks are synthetic: real manifest, annotations and commit records, no shards.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from synthetic import contents_of, make_manifest

from cachedet.store.creation import open_or_create
from cachedet.store.format.commits import CommitRecord, Quality, ShardRecord
from cachedet.store.format.layout import commit_key
from cachedet.store.format.manifest import library_versions
from cachedet.store.store_inputs import StoreInputs
from cachedet.structures import Annotations, CategoryMap, FeatureSpec, LevelSpec

MEASURE = """
import json, sys, time
from pathlib import Path
from cachedet.store.reader import FeatureStore

def megabytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(field))

Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
before = megabytes("VmRSS")
started = time.perf_counter()
store = FeatureStore.open(Path(sys.argv[1]))
seconds = time.perf_counter() - started
print(json.dumps({"images": len(store), "blocks": len(store.blocks), "seconds": seconds,
    "missing": len(store.missing_blocks()), "megabytes_kept": megabytes("VmRSS") - before,
    "megabytes_at_most": megabytes("VmHWM") - before}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=120_000)
    options = parser.parse_args()
    root = options.out / "opening.zarr"
    shutil.rmtree(root, ignore_errors=True)
    build(root, options.images)
    runs = [
        json.loads(subprocess.check_output([sys.executable, "-c", MEASURE, str(root)]))
        for _ in range(5)
    ]
    median = sorted(runs, key=lambda run: run["seconds"])[2]
    shutil.rmtree(root)
    print(
        json.dumps(
            {
                **median,
                "cores": os.cpu_count(),
                "machine": platform.machine(),
                "versions": library_versions(),
            },
            indent=1,
        )
    )


def build(root: Path, images: int) -> None:
    """A store as COCO would give: many image sizes, 7 boxes an image, 80 classes."""
    annotations = make_annotations(images)
    levels = tuple(LevelSpec(name=f"C{n}", channels=1, stride=1 << n) for n in (3, 4, 5))
    spec = FeatureSpec(levels)
    contents = contents_of(annotations)
    manifest = make_manifest(spec=spec, annotations=annotations, image_size=640, codec="fp16")

    plan = open_or_create(
        root,
        StoreInputs(manifest=manifest, annotations=annotations, contents=contents, fit=lambda c: c),
    )
    for block in plan.blocks:
        parts = plan.layout.parts(block.bucket)
        shard = ShardRecord(
            nbytes=123456789, digest="0" * 32, chunk_checksums=bytes(4 * len(block.rows))
        )
        record = CommitRecord(
            block=block.name,
            image_ids=plan.image_ids_of(block),
            fingerprint=plan.fingerprint_of(block),
            shards=dict.fromkeys(parts, shard),
            quality={
                level.name: Quality(values=10**8, signal=1.5e9, noise=123.456, saturated=0)
                for level in plan.manifest.spec
            },
        )
        (root / commit_key(block)).write_bytes(record.to_bytes())


def make_annotations(images: int) -> Annotations:
    rng = np.random.default_rng(0)
    sizes = np.array([(480, 640), (640, 480), (427, 640), (640, 427), (375, 500), (640, 640)])
    common = sizes[rng.integers(len(sizes), size=images)]
    odd = rng.integers(300, 641, size=(images, 2))
    counts = rng.poisson(7, size=images)
    boxes = int(counts.sum())
    corners = rng.uniform(0, 200, size=(boxes, 4))
    corners[:, 2:] += corners[:, :2] + 1
    return Annotations(
        image_ids=np.arange(images, dtype=np.int64),
        file_names=tuple(f"{n:012d}.jpg" for n in range(images)),
        sizes_hw=np.where(rng.random((images, 1)) < 0.8, common, odd).astype(np.int64),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=corners,
        labels=rng.integers(80, size=boxes).astype(np.int64),
        crowd=np.zeros(boxes, dtype=np.bool_),
        areas=np.ones(boxes),
        categories=CategoryMap(ids=tuple(range(80)), names=tuple(map(str, range(80)))),
    )


if __name__ == "__main__":
    main()

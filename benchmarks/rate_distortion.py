"""Size, error and speed of codecs on the features of an existing store. Prints one JSON object.

python benchmarks/rate_distortion.py --store train.zarr --codecs fp16,int8,snr12 [--out DIR]

The source store should be fp32 or fp16. Codecs are fitted on 64 images of `--fit` (default: the
same store). With --out a whole store is written per codec, DIR/<codec>/<name>, to train heads on.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cachedet.store.codecs.codec import Codec
from cachedet.store.codecs.registry import make_codec
from cachedet.store.codecs.statistics import FeatureStatistics
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.manifest import library_versions
from cachedet.store.format.plan import StorePlan
from cachedet.store.format.shards import pack_chunk
from cachedet.store.reader import FeatureStore
from cachedet.store.writer import StoreWriter
from cachedet.structures import Features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--fit", type=Path)
    parser.add_argument("--codecs", required=True)
    parser.add_argument("--images", type=int, default=40, help="measured, spread evenly")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    store = FeatureStore.open(options.store)
    statistics = FeatureStatistics()
    for features in spread(FeatureStore.open(options.fit or options.store), 64):
        statistics.add(features)
    images = list(spread(store, options.images))
    rows = []
    for name in options.codecs.split(","):
        codec = make_codec(name)
        codec = codec.fit(statistics.levels) if codec.needs_fit else codec
        rows.append(measure(codec, store, images))
        if options.out is not None:
            write_store(options.store, codec, options.out / name / options.store.name)
    print(
        json.dumps(
            {
                "store": options.store.name,
                "source_codec": store.manifest.codec,
                "images": len(images),
                "threads": options.threads,
                "codecs": rows,
                "versions": library_versions(),
            },
            indent=1,
        )
    )


def spread(store: FeatureStore, count: int) -> list[Features]:
    """Features (1, C, h, w) of images spread evenly over the store."""
    rows = np.linspace(0, len(store) - 1, min(count, len(store))).round().astype(int)
    view = store.manifest.views[0]
    return [{k: v[None] for k, v in store.read(row, view).items()} for row in rows.tolist()]


def measure(codec: Codec, store: FeatureStore, images: Sequence[Features]) -> dict[str, Any]:
    """Bytes an image, relative error, MB/s of fp16 through encoding and decoding."""
    nbytes = values = saturated = 0
    signal = noise = 0.0
    seconds = {"encode": 0.0, "decode": 0.0}
    for features in images:
        for level, maps in features.items():
            shape = (maps.shape[1], maps.shape[2], maps.shape[3])
            started = time.perf_counter()
            encoded = codec.encode(maps, level=level, images=["one"])
            arrays = encoded.arrays()
            packed = [pack_chunk(arrays[part.name][0], part) for part in codec.parts(level, shape)]
            seconds["encode"] += time.perf_counter() - started
            nbytes += sum(len(piece) for pieces in packed for piece in pieces)
            nbytes += 16 * len(packed)  # their places in the shard's index
            started = time.perf_counter()
            decoded = codec.decode(encoded.parts, level=level, shape=shape)
            seconds["decode"] += time.perf_counter() - started
            values += maps.numel()
            saturated += encoded.saturated
            signal += float(maps.double().square().sum())
            noise += float((decoded - maps).double().square().sum())
    fp16 = 2 * values
    return {
        "codec": codec.name,
        "bytes_per_image": nbytes / len(images),
        "ratio_to_fp16": nbytes / fp16,
        "relative_mse": noise / signal,
        "snr_db": 10 * math.log10(signal / noise) if noise else None,
        "saturated": saturated / values,
        "encode_mb_fp16_per_second": fp16 / seconds["encode"] / 1e6,
        "decode_mb_fp16_per_second": fp16 / seconds["decode"] / 1e6,
    }


def write_store(source: Path, codec: Codec, target: Path) -> None:
    """The same store in another codec, from decoded features: for trials only."""
    store = FeatureStore.open(source)
    plan = StorePlan.load(LocalFiles(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = StoreWriter.open(
        target,
        manifest=replace(store.manifest, codec=codec.name),
        annotations=store.annotations,
        contents=plan.contents,
        fit=lambda _: codec,
    )
    for block in writer.missing_blocks():
        maps = [store.read(row, block.view) for row in block.rows]
        writer.write(block, {k: torch.stack([m[k] for m in maps]) for k in maps[0]})


if __name__ == "__main__":
    main()

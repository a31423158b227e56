"""Random reads of single images: cachedet's reader against zarr-python and bare preads.

python benchmarks/reading.py --out DIR [--codecs int8,int8+zstd,snr11]

Builds stores of generated features (small: 152 k values an image as EfficientNet-lite0 at 288 x
384; large: 13.6 M as ResNet-50 at 800 x 1216), reads them in random order with a warm page cache,
and prints one JSON object with the median of the rounds. All ways are timed in turn in every
round, so the ratios hold on a noisy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from synthetic import contents_of, make_manifest

from cachedet.store.codecs.statistics import FeatureStatistics
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.layout import shard_key
from cachedet.store.format.manifest import library_versions
from cachedet.store.format.plan import StorePlan
from cachedet.store.format.shards import (
    check_crc32c,
    index_nbytes,
    parse_index,
    raw_bytes,
    unpack_zstd,
)
from cachedet.store.reader import FeatureStore
from cachedet.store.writer import StoreWriter
from cachedet.structures import Annotations, CategoryMap, Features, FeatureSpec, LevelSpec

SIZES = {  # (height, width, channels of C3 to C5, images)
    "small": (288, 384, (40, 112, 320), 256),
    "large": (800, 1216, (512, 1024, 2048), 32),
}
ROUNDS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--codecs", default="fp16,int8,int8+zstd")
    parser.add_argument("--sizes", default="small,large")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for size in options.sizes.split(","):
        for codec in options.codecs.split(","):
            root = options.out / f"{size}-{codec}.zarr"
            if not root.exists():
                build(root, size=size, codec=codec)
            results.append({"maps": size, "codec": codec, **measure(root)})
    print(
        json.dumps(
            {
                "results": results,
                "cores": os.cpu_count(),
                "machine": platform.machine(),
                "versions": library_versions(),
            },
            indent=1,
        )
    )


def build(root: Path, *, size: str, codec: str) -> None:
    """A store of smooth random maps: neighbouring cells resemble each other, as features do."""
    height, width, channels, images = SIZES[size]
    levels = [
        LevelSpec(name=f"C{n + 3}", channels=c, stride=8 << n) for n, c in enumerate(channels)
    ]
    spec = FeatureSpec(tuple(levels))
    annotations = make_annotations(images, height, width)
    contents = contents_of(annotations)
    manifest = make_manifest(
        spec=spec, annotations=annotations, image_size=max(height, width), codec=codec
    )
    rng = np.random.default_rng(0)

    def features(count: int) -> Features:
        return {
            name: torch.from_numpy(rng.standard_normal((count, *shape), dtype=np.float32))
            for name, shape in spec.map_shapes((height, width)).items()
        }

    seen = FeatureStatistics()
    seen.add(features(2))
    writer = StoreWriter.open(
        root,
        manifest=manifest,
        annotations=annotations,
        contents=contents,
        fit=lambda unfitted: unfitted.fit(seen.levels),
    )
    for block in writer.missing_blocks():
        packed = [
            writer.encode(block, features(1), start=start) for start in range(len(block.rows))
        ]
        writer.commit(block, packed)


def make_annotations(images: int, height: int, width: int) -> Annotations:
    """Images of one size without boxes."""
    return Annotations(
        image_ids=np.arange(images, dtype=np.int64),
        file_names=tuple(f"{n:012d}.jpg" for n in range(images)),
        sizes_hw=np.tile(np.array([[height, width]], dtype=np.int64), (images, 1)),
        offsets=np.zeros(images + 1, dtype=np.int64),
        boxes=np.zeros((0, 4)),
        labels=np.zeros(0, dtype=np.int64),
        crowd=np.zeros(0, dtype=np.bool_),
        areas=np.zeros(0),
        categories=CategoryMap(ids=(1,), names=("thing",)),
    )


def measure(root: Path) -> dict[str, Any]:
    """Images per second of each way to read, and the ratios the design asks for."""
    store = FeatureStore.open(root)
    bare = BareReader(root)
    arrays = bare.zarr_arrays()
    bucket = next(iter(store.buckets("base")))
    buffers = store.make_buffers(bucket, 1)
    ways: dict[str, Callable[[NDArray[np.int64]], None]] = {
        "zarr": lambda rows: each(rows, lambda row: [array[row] for array in arrays]),
        "encoded": lambda rows: each(
            rows, lambda row: store.read_encoded([(row, "base")], out=buffers)
        ),
        "bare_decoded": lambda rows: each(rows, bare.read),
        "decoded": lambda rows: each(rows, lambda row: store.read(row, "base")),
        "decoded_by_2_threads": lambda rows: in_two_threads(
            rows, lambda row: store.read(row, "base")
        ),
        "encoded_by_2_threads": lambda rows: in_two_threads(
            rows, lambda row: store.read_encoded([(row, "base")], out=buffer_of_thread(store))
        ),
        "bare_decoded_by_2_threads": lambda rows: in_two_threads(rows, bare.read),
    }
    rng = np.random.default_rng(1)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        rows = rng.permutation(len(store))
        for name, way in ways.items():
            started = time.perf_counter()
            way(rows)
            if turn:  # the first warms the cache
                seconds[name].append((time.perf_counter() - started) / len(rows))
    rates = {name: 1 / statistics.median(found) for name, found in seconds.items()}

    def ratio(one: str, other: str) -> float:
        pairs = zip(seconds[one], seconds[other], strict=True)
        return statistics.median(b / a for a, b in pairs)

    return {
        "kilobytes_per_image": store.nbytes / len(store) / 1e3,
        "images_per_second": rates,
        "encoded_to_zarr": ratio("encoded", "zarr"),
        "decoded_to_bare": ratio("decoded", "bare_decoded"),
        "two_threads_to_one_decoded": ratio("decoded_by_2_threads", "decoded"),
        "two_threads_to_one_encoded": ratio("encoded_by_2_threads", "encoded"),
        "two_threads_to_one_bare": ratio("bare_decoded_by_2_threads", "bare_decoded"),
    }


def each(rows: NDArray[np.int64], read: Callable[[int], object]) -> None:
    for row in rows.tolist():
        read(row)


def in_two_threads(rows: NDArray[np.int64], read: Callable[[int], object]) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda half: each(half, read), np.array_split(rows, 2)))


_thread_buffers: dict[tuple[int, int], Any] = {}


def buffer_of_thread(store: FeatureStore) -> Any:
    import threading

    key = id(store), threading.get_ident()
    if key not in _thread_buffers:
        _thread_buffers[key] = store.make_buffers(next(iter(store.buckets("base"))), 1)
    return _thread_buffers[key]


class BareReader:
    """The least that must happen: files open, places known, pread, checksum, decode."""

    def __init__(self, root: Path) -> None:
        self.plan = StorePlan.load(LocalFiles(root))
        self.layout = self.plan.layout
        self.root = root
        bucket = self.plan.blocks[0].bucket
        self.levels = self.layout.levels(bucket)
        self.shapes = self.plan.manifest.spec.map_shapes(bucket)
        self.places: dict[tuple[str, int], tuple[int, int, int]] = {}
        slots = self.plan.manifest.block_size
        for block in self.plan.blocks:
            for array, part in self.layout.parts(bucket).items():
                file = os.open(root / shard_key(block, array, part), os.O_RDONLY)
                size = os.fstat(file).st_size
                content = os.pread(file, index_nbytes(slots), size - index_nbytes(slots))
                table = parse_index(
                    content, used=len(block.rows), file_nbytes=size, part=part, where=array
                )
                for row, (offset, nbytes) in zip(block.rows, table.tolist(), strict=True):
                    self.places[array, row] = file, offset, nbytes

    def zarr_arrays(self) -> list[Any]:
        group = zarr.open_group(self.root, mode="r")
        bucket = self.plan.blocks[0]
        return [group[f"{bucket.group}/{array}"] for array in self.layout.parts(bucket.bucket)]

    def read(self, row: int) -> Features:
        features = {}
        for level, of_level in self.levels.items():
            parts = {}
            for part in of_level:
                file, offset, nbytes = self.places[f"{level}/{part.name}", row]
                out = part.empty(1)
                if part.packing == "zstd":
                    unpack_zstd(os.pread(file, nbytes, offset), out[0], where=level)
                else:
                    crc = bytearray(4)
                    raw = raw_bytes(part.in_order(out[0]))
                    os.preadv(file, [raw.data, crc], offset)
                    check_crc32c(raw, bytes(crc), where=level)
                parts[part.name] = torch.from_numpy(out)
            features[level] = self.plan.codec.decode(parts, level=level, shape=self.shapes[level])
        return features


if __name__ == "__main__":
    main()

"""Training's reads from a bucket behind a slow and faulty network, and from its disk cache.

python benchmarks/buckets.py --out DIR [--images 128] [--rounds 9]

An S3 server (moto) behind `throttled_server.py`: 20 MB/s, 50 ms, 5 % of requests fail or are cut.
The store is that of a ResNet-50 at 640 x 640 (int8, 5.7 MB an image). Measured is the loader alone,
which is the strictest case: no step hides its time. The first epoch is told as a share of what the
bandwidth allows (bytes / 20 MB/s). Epochs from the disk cache and of the same store in a folder
follow in turn, so that their ratio holds on a noisy machine. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import reading
import torch
from throttled_server import ServerProcess

from cachedet.loading.loader import FeatureLoader, make_loader
from cachedet.store.copying import copy_store
from cachedet.store.files.disk_cache import FOLDER_NAME
from cachedet.store.reader import FeatureStore

BANDWIDTH = 20  # MB/s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    reading.SIZES["bucket"] = (640, 640, (512, 1024, 2048), options.images)
    root = options.out / f"{options.images}.zarr"
    if not root.exists():
        reading.build(root, size="bucket", codec="int8")
    with ServerProcess("--bandwidth", "0", "--latency", "0", "--faults", "0") as server:
        os.environ.update(server.environment)
        url = server.say("new_url")
        copy_store(root, url)
        for command in (f"bandwidth {BANDWIDTH}", "latency 0.05", "faults 0.05"):
            server.say(command)
        print(json.dumps(measure(server, url, root, options), indent=1))


def measure(server: ServerProcess, url: str, root: Path, options: Any) -> dict[str, Any]:
    local = FeatureStore.open(root)
    plain = FeatureStore.open(url)
    result: dict[str, Any] = {"images": options.images, "MB": local.nbytes / 1e6}
    read_epoch(make_loader(local, batch_size=8), 0)  # what is imported and made once
    for residency in ("stream", "disk"):
        cache = options.out / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        os.environ[FOLDER_NAME] = str(cache)
        before = server.counts()["GET"]
        loader = make_loader(plain, batch_size=8, residency=residency)  # type: ignore[arg-type]
        seconds, _ = read_epoch(loader, 0)
        after = server.counts()["GET"]
        result[f"first epoch, {residency}"] = {
            "seconds": seconds,
            "of_bandwidth": local.nbytes / 1e6 / BANDWIDTH / seconds,
            "requests": after["requests"] - before["requests"],
            "failed": after["faults"] - before["faults"],
        }
    folder = make_loader(local, batch_size=8)
    before = server.counts()
    result["later epochs"] = in_turn(loader, folder, rounds=options.rounds)
    result["requests of later epochs"] = server.counts() != before
    return result


def in_turn(cached: FeatureLoader, folder: FeatureLoader, *, rounds: int) -> dict[str, float]:
    """Medians of the rounds; whoever is first changes from round to round."""
    times: dict[str, list[tuple[float, float]]] = {"cached": [], "folder": []}
    for number in range(1, rounds + 1):
        pair = [("cached", cached), ("folder", folder)]
        for name, loader in pair if number % 2 else reversed(pair):
            times[name].append(read_epoch(loader, number))
    both = list(zip(times["folder"], times["cached"], strict=True))
    return {
        "folder_seconds": statistics.median(seconds for (seconds, _), _ in both),
        "cached_seconds": statistics.median(seconds for _, (seconds, _) in both),
        "rate": statistics.median(one[0] / other[0] for one, other in both),
        "rate_of_cpu_seconds": statistics.median(one[1] / other[1] for one, other in both),
    }


def read_epoch(loader: FeatureLoader, number: int) -> tuple[float, float]:
    """Wall and CPU seconds."""
    begun, computed = time.perf_counter(), time.process_time()
    for _ in loader.epoch(number):
        pass
    return time.perf_counter() - begun, time.process_time() - computed


if __name__ == "__main__":
    main()

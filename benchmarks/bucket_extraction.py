"""Extraction into an S3 server on this machine against one into a folder, and past a slow network.

python benchmarks/bucket_extraction.py --out DIR [--rounds 5] [--backbone resnet18] \
    [--bandwidth 20] [--latency 0.05] [--faults 0.05]

The server (moto) runs in a process of its own; its CPU time is not the extraction's. Ways alternate
within a round; the first round warms up. Seconds are those of extraction itself, without the look
at all images; CPU seconds are those of the whole call, which has it. Prints one JSON object, and
ends with status 1 where a store is not bit-equal to that of the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from throttled_server import ServerProcess
from torch import Tensor, nn

from cachedet.backbone.custom import wrap_backbone
from cachedet.backbone.frozen import FrozenBackbone
from cachedet.config.run import ExtractConfig
from cachedet.data.shapes import write_shapes
from cachedet.extract import extract
from cachedet.store.files.bucket import Bucket
from cachedet.store.files.depot import Folder, open_depot
from cachedet.structures import LevelSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5, help="0: only the throttled part")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--images", type=int, default=48, help="of the first part")
    parser.add_argument("--slow-images", type=int, default=200, help="of the throttled part")
    parser.add_argument("--bandwidth", type=float, default=20.0, help="MB/s")
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--faults", type=float, default=0.05)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["CACHEDET_REMOTE_PATIENCE"] = "120"
    with ServerProcess() as server:
        os.environ.update(server.environment)
        result = {"throttled": past(server, options)}
        if options.rounds:
            result["unthrottled"] = compare_ways(server, options)
    print(json.dumps(result, indent=1))
    if not all(part["bit_equal"] for part in result.values()):
        sys.exit("a store is not that of the folder")


def compare_ways(server: ServerProcess, options: argparse.Namespace) -> dict[str, Any]:
    """Folder, store in the bucket, images there too, in turn."""
    config = config_of(options.out / "fast", options.images, options)
    photos = upload(server, Path(config.images))
    wall: dict[str, list[float]] = {"folder": [], "bucket": [], "images in the bucket": []}
    cpu: dict[str, list[float]] = {way: [] for way in wall}
    bit_equal = True
    for turn in range(options.rounds + 1):
        shutil.rmtree(config.store, ignore_errors=True)
        ways: dict[str, dict[str, Any]] = {
            "folder": {},
            "bucket": {"store": server.say("new_url")},
            "images in the bucket": {"store": server.say("new_url"), "images": photos},
        }
        for way, changes in ways.items():
            seconds, used, _ = timed(config.model_copy(update=changes))
            if turn:
                wall[way].append(seconds)
                cpu[way].append(used)
        wanted = content_of(config.store)
        bit_equal &= all(content_of(ways[way]["store"]) == wanted for way in list(ways)[1:])
    return {
        "backbone": options.backbone,
        "images": options.images,
        "MB": sum(map(len, wanted.values())) / 1e6,
        "rounds": options.rounds,
        "bit_equal": bit_equal,
        "wall_seconds": {way: statistics.median(values) for way, values in wall.items()},
        "cpu_seconds": {way: statistics.median(values) for way, values in cpu.items()},
        "rate_to_folder_by_wall": ratios(wall),
        "rate_to_folder_by_cpu": ratios(cpu),
    }


def ratios(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """The rate of each way, as a part of the folder's: median and all rounds."""
    found = {}
    for way, values in seconds.items():
        pairs = zip(seconds["folder"], values, strict=True)
        each = [folder / other for folder, other in pairs]
        found[way] = {"median": statistics.median(each), "rounds": each}
    return found


def past(server: ServerProcess, options: argparse.Namespace) -> dict[str, Any]:
    """A backbone that costs next to nothing, so that the network is the bottleneck."""
    config = config_of(options.out / "slow", options.slow_images, options).model_copy(
        update={"codec": "fp32", "image_size": 512}
    )
    torch.manual_seed(0)
    level = LevelSpec(name="C3", channels=256, stride=8)
    patches = wrap_backbone(Patches(), name="patches", levels=[level])
    alone, _, nbytes = timed(config, patches)
    url = server.say("new_url")
    before = server.counts()
    for name in ("bandwidth", "latency", "faults"):
        server.say(f"{name} {getattr(options, name)}")
    seconds, _, _ = timed(config.model_copy(update={"store": url}), patches)
    counts = since(before, server.counts())
    server.say("faults 0")
    plain = plain_puts(content_of(config.store), server.say("new_url"))
    for name in ("bandwidth", "latency"):
        server.say(f"{name} 0")
    passed = sum(one["received"] + one["sent"] for one in counts.values())
    return {
        "images": options.slow_images,
        "MB": nbytes / 1e6,
        "MB_that_passed": passed / 1e6,
        "seconds_into_a_folder": alone,
        "seconds": seconds,
        "of_the_bandwidth": nbytes / 1e6 / options.bandwidth / seconds,
        "of_the_bandwidth_with_what_was_sent_twice": passed / 1e6 / options.bandwidth / seconds,
        "seconds_of_plain_puts_without_faults": plain,
        "rate_to_plain_puts": plain / seconds,
        "requests": counts,
        "bit_equal": content_of(url) == content_of(config.store),
    }


def plain_puts(content: dict[str, bytes], url: str) -> float:
    """Seconds that the same bytes take to arrive, eight at once: what this machine's network is."""
    started = time.perf_counter()
    open_depot(url).put(content)
    return time.perf_counter() - started


def since(before: dict[str, Any], after: dict[str, Any]) -> dict[str, dict[str, int]]:
    return {
        method: {name: count - before.get(method, {}).get(name, 0) for name, count in one.items()}
        for method, one in after.items()
    }


def config_of(root: Path, images: int, options: argparse.Namespace) -> ExtractConfig:
    """Generated images, and random weights that are the same for every call."""
    import timm

    shutil.rmtree(root, ignore_errors=True)
    paths = write_shapes(root / "shapes", train=images, val=1)
    weights = root / "weights.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model(options.backbone).state_dict(), weights)
    return ExtractConfig.model_validate(
        {
            "images": paths.images, "annotations": paths.train, "store": root / "s.zarr",
            "backbone": options.backbone, "weights": str(weights), "image_size": 384,
            "views": "base", "codec": "int8", "block_size": 8, "device": "cpu", "workers": 2,
        }
    )  # fmt: skip


def upload(server: ServerProcess, folder: Path) -> str:
    url = server.say("new_url").replace("s.zarr", "photos")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    open_depot(url).put(files)
    return url


class Patches(nn.Module):
    """4 MB of fp32 for an image of 512 pixels, for nearly no work."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 256, 8, stride=8)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"C3": self.convolution(images)}


def timed(
    config: ExtractConfig, backbone: FrozenBackbone | None = None
) -> tuple[float, float, int]:
    """Seconds of extraction, CPU seconds of the call, bytes of the store."""
    started = time.process_time()
    report = extract(config, backbone=backbone)
    return report.seconds, time.process_time() - started, report.nbytes_written


def content_of(place: Path | str) -> dict[str, bytes]:
    """Every object or file but what writers work with, by key."""
    depot = open_depot(place)
    read: Callable[[str], bytes]
    if isinstance(depot, Folder):
        read = lambda key: (depot.folder / key).read_bytes()  # noqa: E731
    else:
        read = lambda key: found_in(depot, key)  # noqa: E731
    return {key: read(key) for key in depot.sizes() if not key.startswith("leases/")}


def found_in(bucket: Bucket, key: str) -> bytes:
    found = bucket.find(key)
    assert found is not None
    return found.content


if __name__ == "__main__":
    main()

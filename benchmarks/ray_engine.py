"""`extract --engine ray` on this machine: two workers against one, the driver's memory, kills.

python benchmarks/ray_engine.py --out DIR [--parts speed,memory,kills] [--kills 200]

Generated images, random weights. `speed`: ResNet-50 at 384 px, one core a worker, images per second
from the first commit to the last, one and two workers in turn. `memory`: 10,000 blocks of one tiny
image; resident memory of the driver at the first 5 % of the commits and at most after that.
`kills`: SIGKILL to a random worker every 2 to 6 seconds, a new store whenever one is whole; each
must be the store of one process, byte for byte. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from cachedet.config.run import ExtractConfig, make_extract_config
from cachedet.data.shapes import write_shapes
from cachedet.errors import EngineError
from cachedet.extract import extract
from cachedet.store.prune import prune_store
from cachedet.store.verify import verify_store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--parts", default="speed,memory,kills")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--images", type=int, default=96, help="of `speed` and `kills`")
    parser.add_argument("--rounds", type=int, default=3, help="of `speed`")
    parser.add_argument("--backbone", default="resnet50", help="of `speed`")
    parser.add_argument("--blocks", type=int, default=10_000)
    options = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: speed(options.out, options.images, options.rounds, options.backbone),
        "memory": lambda: memory(options.out, options.blocks),
        "kills": lambda: kills(options.out, options.images, options.kills),
    }
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    print(json.dumps({name: parts[name]() for name in options.parts.split(",")}, indent=1))
    ray.shutdown()


def config_of(out: Path, name: str, images: int, **changes: Any) -> ExtractConfig:
    data = out / f"images-{images}"
    if not data.exists():
        write_shapes(data, train=images, val=1)
    values = {
        "images": data / "images",
        "annotations": data / "train.json",
        "store": out / name,
        "backbone": "test_resnet",
        "weights": str(out / "weights.pth"),
        "block_size": 1,
        "batch_size": 1,
        "device": "cpu",
        "workers": 1,
    } | changes
    if not (out / "weights.pth").exists():
        import timm
        import torch

        torch.save(timm.create_model("test_resnet").state_dict(), out / "weights.pth")
    return make_extract_config(values)


def commits(store: Path) -> list[Path]:
    return list((store / "commits").glob("*.json"))


def speed(out: Path, images: int, rounds: int, backbone: str) -> dict[str, Any]:
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers, found in rates.items():
            config = config_of(
                out,
                "speed.zarr",
                images,
                backbone=backbone,
                weights="none",
                image_size=384,
                views="base,hflip",
                block_size=4,
                batch_size=4,
                engine={"kind": "ray", "workers": workers},
            )
            extract(config)
            times = sorted(path.stat().st_mtime for path in commits(out / "speed.zarr"))
            found.append(4 * (len(times) - 1) / (times[-1] - times[0]))
            shutil.rmtree(out / "speed.zarr")
    ratios = sorted(two / one for one, two in zip(rates[1], rates[2], strict=True))
    return {"images_per_second": rates, "ratio": ratios[len(ratios) // 2]}


def memory(out: Path, blocks: int) -> dict[str, Any]:
    seen: list[tuple[int, int]] = []  # commits, bytes
    store = out / "memory.zarr"
    views = "base,hflip,scale=0.5,crop=2,jitter=5"

    def look() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        seen.append((len(commits(store)), pages * os.sysconf("SC_PAGE_SIZE")))

    with every(lambda: 1.0, look):
        report = extract(config_of(out, store.name, blocks // 10, image_size=32, views=views,
                                   engine={"kind": "ray"}))  # fmt: skip
    started = next(nbytes for count, nbytes in seen if count > blocks // 20)
    most = max(nbytes for count, nbytes in seen if count > blocks // 20)
    shutil.rmtree(store)
    return {
        "blocks": report.blocks_total,
        "written": report.blocks_written,
        "seconds": report.seconds,
        "MB_at_5_percent": started / 1e6,
        "MB_more_at_most": (most - started) / 1e6,
    }


def kills(out: Path, images: int, wanted: int) -> dict[str, Any]:
    draw = random.Random(0)
    killed: list[int] = []
    runs = given_up = 0
    changes: dict[str, Any] = {"image_size": 128, "views": "base,hflip,scale=0.5,crop=2,jitter=5"}
    extract(config_of(out, "whole.zarr", images, **changes))

    def kill() -> None:
        found = workers_of_ray()
        if found and len(killed) < wanted:
            killed.append(draw.choice(found))
            os.kill(killed[-1], signal.SIGKILL)

    with every(lambda: draw.uniform(2, 6), kill):
        while len(killed) < wanted:
            shutil.rmtree(out / "killed.zarr", ignore_errors=True)
            runs += 1
            while True:
                try:
                    engine = {"kind": "ray", "workers": 2}
                    extract(config_of(out, "killed.zarr", images, engine=engine, **changes))
                    break
                except EngineError:
                    given_up += 1
            require_same(out / "killed.zarr", out / "whole.zarr")
    return {"kills": len(killed), "stores": runs, "calls_given_up": given_up}


def require_same(store: Path, whole: Path) -> None:
    report = verify_store(store, deep=True)
    assert not report.bad, report.bad
    prune_store(store, dry_run=False)
    assert not any(some.paths for some in prune_store(store, dry_run=True).waste)
    for root, other in ((store, whole), (whole, store)):
        for path in root.rglob("*"):
            same = other / path.relative_to(root)
            assert path.is_dir() or path.read_bytes() == same.read_bytes(), path


@contextmanager
def every(pause: Callable[[], float], work: Callable[[], None]) -> Iterator[None]:
    """Calls `work` in a thread of its own, with these pauses."""
    is_over = threading.Event()

    def loop() -> None:
        while not is_over.wait(pause()):
            work()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def workers_of_ray() -> list[int]:
    """Processes of this benchmark: children of the daemon that it started."""
    found, parents = [], {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, words = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
        if words.startswith(b"ray::BlockWorker"):
            found.append(int(folder.name))
    return [pid for pid in found if parents.get(parents[pid]) == os.getpid()]


if __name__ == "__main__":
    main()

"""`predict` against decoding and the model alone, on the same files, in one process.

Each round times, turn about: decoding and the network in one thread after the other (what must be
computed), `predict --no-drawings`, and `predict` with drawings. Also: what listing N files costs.

    python benchmarks/predicting.py RUN IMAGES [--images 100] [--rounds 3] [--batch-size 0]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cachedet.data.image_folders import images_in
from cachedet.device import wait_for
from cachedet.predict import predict
from cachedet.prediction.image_detector import join_run
from cachedet.prediction.read_ahead import read_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=0)
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    files = list(itertools.islice(itertools.cycle(images_in(args.folder)), args.images))
    with tempfile.TemporaryDirectory() as temporary:
        links = Path(temporary) / "images"
        links.mkdir()
        for number, file in enumerate(files):
            (links / f"{number:05d}{file.suffix}").symlink_to(file.resolve())
        settings = {"weights": args.weights, "device": args.device}
        joined = join_run(args.run, **settings)
        detector = joined.on_images()
        device = next(joined.detector.parameters()).device

        def alone() -> None:
            for file in files:
                detector.detect([read_image(file, detector, keeps_pixels=False)])
            wait_for(device)

        def whole(drawings: bool) -> None:
            predict(
                args.run, images=[links], out=Path(temporary) / "out", drawings=drawings,
                batch_size=args.batch_size, backbone=joined.backbone, **settings,
            )  # fmt: skip

        work = {
            "decode + model": alone,
            "predict, no drawings": lambda: whole(False),
            "predict": lambda: whole(True),
        }
        timed = _time_turn_about(work, rounds=args.rounds)
    reference = timed["decode + model"]
    for name, seconds in timed.items():
        ratios = [a / b for a, b in zip(reference, seconds, strict=True)]
        print(
            f"{name:<22} {args.images / statistics.median(seconds):7.1f} images/s, "
            f"{statistics.median(ratios):.2f} of decode + model"
        )


def _time_turn_about(work: dict[str, Callable[[], None]], *, rounds: int) -> dict[str, list[float]]:
    for job in work.values():
        job()  # warms up
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, job in work.items():
            started = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()

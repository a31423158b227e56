"""`predict` against decoding and the model alone, on the same files, in one process.

Each round times, turn about: decoding and the network in one thread after the other (what must be
computed), `predict --no-drawings`, and `predict` with drawings; from the calls of `predict` that of
one image is subtracted, most of which is opening the run: a thousand images hide it. Beside the
clock stands the CPU time of the process, which other work on the machine disturbs less.

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

from cachedet.allocator import keep_freed_memory
from cachedet.data.image_folders import images_in
from cachedet.device import wait_for
from cachedet.predict import predict
from cachedet.prediction.image_detector import join_run
from cachedet.prediction.read_ahead import read_image

_ALONE, _ONE = "decode + model", "one image"


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
    keep_freed_memory()  # as the command line does
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

        def whole(drawings: bool, only: int | None = None) -> None:
            predict(
                args.run, images=sorted(links.iterdir())[:only], out=Path(temporary) / "out",
                drawings=drawings, batch_size=args.batch_size, **settings,
            )  # fmt: skip

        work = {
            _ALONE: alone,
            _ONE: lambda: whole(False, only=1),
            "predict, no drawings": lambda: whole(False),
            "predict": lambda: whole(True),
        }
        timed = _time_turn_about(work, rounds=args.rounds)
    first = timed.pop(_ONE)
    share = (args.images - 1) / args.images
    for name, pairs in timed.items():
        ratios = []
        for clock in (0, 1):
            each = [
                1 if name == _ALONE else share * a[clock] / (b[clock] - o[clock])
                for a, b, o in zip(timed[_ALONE], pairs, first, strict=True)
            ]
            ratios.append(statistics.median(each))
        rate = args.images / statistics.median(seconds for seconds, _ in pairs)
        print(
            f"{name:<22} {rate:6.1f} images/s, {ratios[0]:.2f} of decode + model by the clock, "
            f"{ratios[1]:.2f} by CPU time"
        )


def _time_turn_about(
    work: dict[str, Callable[[], object]], *, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Seconds by the clock and of the process's CPU time."""
    for job in work.values():
        job()  # warms up
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, job in work.items():
            started = time.perf_counter(), time.process_time()
            job()
            seconds[name].append(
                (time.perf_counter() - started[0], time.process_time() - started[1])
            )
    return seconds


if __name__ == "__main__":
    main()

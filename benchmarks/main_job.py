"""The main job on one COCO data set, timed: extract, train heads, score. Prints one JSON object.

python benchmarks/main_job.py --images DIR --train train.json --val val.json --out DIR
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

from cachedet.config.run import ExtractConfig, load_train_config
from cachedet.device import default_workers
from cachedet.evaluate import evaluate
from cachedet.extract import extract
from cachedet.store.format.manifest import library_versions
from cachedet.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("images", "train", "val", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/retinanet_fpn_tiny.yaml"))
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    reports = [
        extract(
            ExtractConfig(
                images=options.images,
                annotations=annotations,
                store=options.out / f"{name}.zarr",
                image_size=options.image_size,
                views=views,
                on_bad_image="skip",
                workers=default_workers(),
            )
        )
        for name, annotations, views in (
            ("train", options.train, "base,hflip"),
            ("val", options.val, "base"),
        )
    ]
    seconds["extract"] = time.perf_counter() - started
    started = time.perf_counter()
    trained = train(
        load_train_config(options.config, options.overrides),
        train_store=reports[0].store,
        val_store=reports[1].store,
        run=options.out / "run",
    )
    seconds["train"] = time.perf_counter() - started
    scores = evaluate(options.out / "run", store=reports[1].store).scores
    print(
        json.dumps(
            {
                "ap": scores.ap,
                "ap50": scores.ap50,
                "seconds": seconds,
                "seconds_per_epoch": trained.seconds_per_epoch,
                "steps": trained.steps,
                "megabytes": sum(report.nbytes_written for report in reports) / 1e6,
                "skipped": [list(pair) for report in reports for pair in report.skipped],
                "remarks": [list(pair) for report in reports for pair in report.notes],
                "machine": platform.machine(),
                "versions": library_versions(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()

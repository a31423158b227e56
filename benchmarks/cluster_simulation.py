"""Machines and a bucket: what `estimate --what-if` simulates against what processes take.

python benchmarks/cluster_simulation.py --images DIR --annotations train.json

Starts 1, 2 and 4 processes of `extract` at once, each into a new bucket of throttled_server.py, and
prints one JSON line each. What a block takes to compute is that of one process into a folder. Where
processes begin is drawn, so that a simulation gives a range: least, median and most of 30.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from throttled_server import ServerProcess

from cachedet.estimation.cluster import ClusterJob, StorageRates, simulate
from cachedet.extract import extract

# (MB/s, seconds of latency); the last is held up by the processor
NETWORKS = ((0.5, 0.05), (0.0, 0.2), (0.0, 0.0))
_SHARDS = 6  # of int8 on three levels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--annotations", required=True)
    parser.add_argument("--store", help="of one process that this script starts")
    options = parser.parse_args()
    if options.store is not None:
        print(json.dumps(work(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.store = f"{folder}/t.zarr"
        alone = work(options)
    for bandwidth, latency in NETWORKS:
        for workers in (1, 2, 4):
            print(json.dumps(compare(options, alone, bandwidth, latency, workers)), flush=True)


def work(options: Any) -> dict[str, Any]:
    """When writing began and ended, in seconds since 1970."""
    report = extract(
        images=options.images, annotations=options.annotations, store=options.store,
        backbone="test_resnet", weights="none", image_size=256, views="base,hflip",
        block_size=2, batch_size=2, workers=1,
    )  # fmt: skip
    end = time.time()
    return {
        "begin": end - report.seconds,
        "end": end,
        "blocks": report.blocks_total,
        "written": report.blocks_written,
        "nbytes": report.nbytes_written,
    }


def compare(
    options: Any, alone: dict[str, Any], bandwidth: float, latency: float, workers: int
) -> dict[str, Any]:
    limits = ("--bandwidth", str(bandwidth), "--latency", str(latency))
    with ServerProcess(*limits) as server:
        command = [
            *(sys.executable, __file__, "--images", options.images),
            *("--annotations", options.annotations, "--store", server.say("new_url")),
        ]
        started = [
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | server.environment,
            )
            for _ in range(workers)
        ]
        results = [json.loads(one.communicate()[0].splitlines()[-1]) for one in started]
        counts = server.counts()
    blocks = alone["blocks"]
    job = ClusterJob(
        blocks=blocks,
        block_seconds=(alone["end"] - alone["begin"]) / blocks,
        block_nbytes=alone["nbytes"] / blocks,
        shards=_SHARDS,
    )
    rates = StorageRates(bandwidth=bandwidth * 1e6 or math.inf, latency=latency)
    runs = [simulate(job, rates, workers=workers, seed=seed) for seed in range(30)]
    return {
        "bandwidth": bandwidth,
        "latency": latency,
        "workers": workers,
        "seconds": range_of([round(run.seconds, 1) for run in runs]),
        "took": round(max(one["end"] for one in results) - min(one["begin"] for one in results), 1),
        "puts": range_of([run.traffic.puts for run in runs]),
        "puts_made": counts["PUT"]["requests"],
        "gets": range_of([run.traffic.gets for run in runs]),
        "gets_made": counts["GET"]["requests"],
        "block_seconds": round(job.block_seconds, 3),
    }


def range_of(values: list[Any]) -> list[Any]:
    """Least, median, most."""
    values = sorted(values)
    return [values[0], values[len(values) // 2], values[-1]]


if __name__ == "__main__":
    main()

"""Seconds and memory of scoring detections, beside pycocotools. Prints one JSON object.

python benchmarks/scoring.py [--images 5000] [--detections 100] [--classes 80]
    [--against pycocotools,faster-coco-eval] [--resamples 1000]

Images are synthetic: 7 boxes each (COCO's mean), a third of the detections near one of them.
faster-coco-eval is no dependency of cachedet; install it beside to compare. pycocotools is timed
in the same run: it takes minutes (`--against ""` leaves it out).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from cachedet.evaluation.curves import draw_curves
from cachedet.evaluation.detection_table import DetectionTable
from cachedet.evaluation.error_kinds import analyse_errors
from cachedet.evaluation.metrics import coco_results, ground_truth_json, score_table
from cachedet.evaluation.significance import bootstrap
from cachedet.store.format.manifest import library_versions
from cachedet.structures import Annotations, CategoryMap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--against", default="pycocotools")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    annotations = make_annotations(rng, images=options.images, classes=options.classes)
    table = make_detections(rng, annotations, each=options.detections)
    before = peak_megabytes()
    scores, seconds = timed("figures", lambda: score_table(annotations, table))
    report = {
        "images": len(annotations),
        "boxes": len(annotations.labels),
        "detections": len(table),
        "classes": options.classes,
        "ap": scores.ap,
        **seconds,
        "megabytes_above_the_data": peak_megabytes() - before,
        **timed("error_analysis", lambda: analyse_errors(annotations, table))[1],
        **timed("curves", lambda: draw_curves(annotations, table))[1],
    }
    if options.resamples:
        resample = partial(bootstrap, annotations, table, resamples=options.resamples, seed=0)
        report |= {"resamples": options.resamples, **timed("bootstrap", resample)[1]}
    for name in filter(None, options.against.split(",")):
        report |= compare(name, annotations, table, ours=scores.ap)
    report |= {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": library_versions(),
    }
    print(json.dumps(report, indent=1))


def compare(
    name: str, annotations: Annotations, table: DetectionTable, *, ours: float
) -> dict[str, Any]:
    """Seconds of another evaluator on the same rows, and how far its AP is from ours."""
    if name == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as Evaluator
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as Evaluator
    rows = coco_results(annotations, table)

    def score() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = ground_truth_json(annotations)
            coco.createIndex()
            scored = Evaluator(coco, coco.loadRes(rows), "bbox")
            scored.evaluate()
            scored.accumulate()
            scored.summarize()
        return float(scored.stats[0])

    theirs, seconds = timed(name, score)
    return {**seconds, f"{name}_ap_difference": abs(theirs - ours)}


def timed(name: str, work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What it gives; seconds by the clock, and of all cores, which other work hardly changes."""
    started, busy = time.perf_counter(), time.process_time()
    result = work()
    spent, used = time.perf_counter() - started, time.process_time() - busy
    return result, {f"{name}_s": round(spent, 2), f"{name}_cpu_s": round(used, 2)}


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def make_annotations(rng: np.random.Generator, *, images: int, classes: int) -> Annotations:
    counts = rng.poisson(7, size=images)
    total = int(counts.sum())
    corners = rng.uniform(0, 400, size=(total, 2))
    sides = np.exp(rng.uniform(np.log(10), np.log(300), size=(total, 2)))
    popularity = 1 / np.arange(1, classes + 1)
    return Annotations(
        image_ids=np.arange(images, dtype=np.int64),
        file_names=tuple(f"{n:012d}.jpg" for n in range(images)),
        sizes_hw=np.full((images, 2), 700, dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=np.concatenate([corners, corners + sides], axis=1),
        labels=rng.choice(classes, size=total, p=popularity / popularity.sum()).astype(np.int64),
        crowd=rng.random(total) < 0.01,
        areas=sides.prod(axis=1),
        categories=CategoryMap(ids=tuple(range(classes)), names=tuple(map(str, range(classes)))),
    )


def make_detections(
    rng: np.random.Generator, annotations: Annotations, *, each: int
) -> DetectionTable:
    """A third of them near a box of their image, nine in ten of these of its class."""
    rows = np.repeat(np.arange(len(annotations)), each)
    total = len(rows)
    corners = rng.uniform(0, 400, size=(total, 2))
    sides = np.exp(rng.uniform(np.log(10), np.log(300), size=(total, 2)))
    xywh = np.concatenate([corners, sides], axis=1)
    labels = rng.integers(0, len(annotations.categories), size=total)
    scores = rng.beta(1, 6, size=total)
    counts = np.diff(annotations.offsets)[rows]
    near = (rng.random(total) < 0.33) & (counts > 0)
    box = annotations.offsets[rows[near]] + rng.integers(0, counts[near])
    found = annotations.boxes[box]
    size = found[:, 2:] - found[:, :2]
    xywh[near, :2] = found[:, :2] + size * rng.normal(0, 0.1, size=size.shape)
    xywh[near, 2:] = size * np.exp(rng.normal(0, 0.15, size=size.shape))
    right = rng.random(len(box)) < 0.9
    labels[near] = np.where(right, annotations.labels[box], labels[near])
    scores[near] = rng.beta(2, 2, size=len(box))
    return DetectionTable(
        rows=rows, labels=labels.astype(np.int64), xywh=xywh, scores=scores.round(4)
    )


if __name__ == "__main__":
    main()

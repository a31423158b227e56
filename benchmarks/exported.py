"""Exported files beside torch: the same images, turn by turn, in one process.

    python -m benchmarks.exported RUN model.onnx model.xml --images DIR --annotations FILE

What is counted is one image from pixels to detections, in turn by torch and by each file, on one
thread each: seconds of the processor, so that other work on the machine takes nothing away. With
`--threads 2` it is seconds of the clock, which want a quiet machine. Then the AP of all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cachedet.data.annotation_formats import read_dataset
from cachedet.data.images import decode_image
from cachedet.evaluation.detection_table import tabulate
from cachedet.evaluation.metrics import score_table
from cachedet.exporting.exported_model import ExportedModel
from cachedet.exporting.model_file import ModelFile
from cachedet.prediction.image_detector import load_image_detector
from cachedet.structures import Detections

_WARM = 2  # images before any is counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("models", type=Path, nargs="+", help="onnx, xml and pt2 files")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--most", type=int, default=10_000, help="images")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    subjects: dict[str, Callable[..., Detections]] = {
        "torch": load_image_detector(arguments.run, weights=arguments.weights, device="cpu")
    }
    for path in arguments.models:
        model = ExportedModel(ModelFile.read(path), where=str(path), threads=arguments.threads)
        subjects[path.name] = model.on_images()
    dataset = read_dataset(annotations=arguments.annotations, images=arguments.images)
    truth = dataset.annotations.keep_rows(range(min(arguments.most, len(dataset.annotations))))
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    found: dict[str, list[Detections]] = {name: [] for name in subjects}
    for row, image_id in enumerate(truth.image_ids.tolist()):
        pixels = decode_image(dataset.path_of(row))
        for name, detect in subjects.items():
            started = clock()
            found[name].append(detect(pixels, image_id=image_id))
            seconds[name].append(clock() - started)
    figures: dict[str, Any] = {
        name: {
            "images": len(truth),
            "median_ms": round(statistics.median(seconds[name][_WARM:]) * 1000, 1),
            "ap": score_table(truth, tabulate(truth, found[name])).ap,
        }
        for name in subjects
    }
    for name in subjects:
        ratio = figures["torch"]["median_ms"] / figures[name]["median_ms"]
        figures[name]["times_torch"] = round(ratio, 2)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

"""Annotation and results files of which a few values were replaced by nasty ones."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cachedet.data.annotation_formats import read_dataset
from cachedet.errors import InputError
from cachedet.evaluation.files import score_files

NASTY: list[Any] = [
    None, True, False, 0, -1, 2**31, 2**63, -(2**63), 10**400, 1e308, 1e300, math.nan, math.inf,
    -math.inf, 0.1, 1e-320, "", "1", "x", "\ud800", "../x", "/etc/passwd", [], [[]], [1, 2, 3, 4],
    [[1, 2, 3, 4, 5, 6]], [[[1]]], {}, {"size": [60, 90], "counts": [5400]},
    {"size": [60, 90], "counts": "0"}, {"size": [2**20, 2**20], "counts": [2**40]}, {"counts": [1]},
    [0.1, 0.2, 0.3, 0.4], [5, 5, -3, -3], [[1e9, 0, -1e9, 5, 3, 3, 8, 8]], [["a"]], {"a": 1},
]  # fmt: skip
POLYGON = [[1, 1, 30, -5, 40, 70]]


def truth() -> dict[str, Any]:
    return {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": 90, "height": 60,
             "neg_category_ids": [1], "not_exhaustive_category_ids": []}
            for n in range(1, 4)
        ],
        "annotations": [
            {"id": n, "image_id": 1 + n % 3, "category_id": 1 + n % 2, "bbox": [5 * n, 3, 20, 30],
             "area": 600.0, "iscrowd": n // 5, "segmentation": POLYGON}
            for n in range(1, 8)
        ],
        "categories": [{"id": n, "name": f"class {n}", "frequency": "r"} for n in (1, 2)],
    }  # fmt: skip


def results() -> list[dict[str, Any]]:
    return [
        {"image_id": 1 + n % 3, "category_id": 1 + n % 2, "bbox": [5 * n, 4, 20, 30],
         "score": 0.1 * n, "segmentation": POLYGON}
        for n in range(1, 9)
    ]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from places(inner, (*path, key))


def mutate(value: Any, draw: random.Random) -> Any:
    holder = [copy.deepcopy(value)]
    for _ in range(draw.choice([0, 1, 1, 2, 4])):
        *above, key = draw.choice(list(places(holder))[1:])
        node: Any = holder
        for step in above:
            node = node[step]
        if isinstance(node, dict) and draw.random() < 0.2:
            del node[key]
        else:
            node[key] = copy.deepcopy(draw.choice(NASTY))
    return holder[0]


@pytest.mark.parametrize("seed", range(4))
def test_read_scored_or_refused(seed: int, tmp_path: Path) -> None:
    """Warnings are errors here: no sum overflows either."""
    draw = random.Random(seed)
    gt, dt = tmp_path / "gt.json", tmp_path / "dt.json"
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").touch()
    for _ in range(60):
        gt.write_text(json.dumps(mutate(truth(), draw)))
        dt.write_text(json.dumps(mutate(results(), draw)))
        with contextlib.suppress(InputError):
            read_dataset(annotations=gt, images=tmp_path / "images")
        with contextlib.suppress(InputError):
            score_files(detections=dt, annotations=gt, lvis=draw.random() < 0.3)

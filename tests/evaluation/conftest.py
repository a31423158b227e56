"""Random data sets that hold what evaluation goes wrong on, and pycocotools itself."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cachedet.structures import Annotations, CategoryMap, Detections


@dataclass(frozen=True)
class RandomScene:
    """Boxes on a coarse grid: equal overlaps, equal scores and areas at the bounds are common."""

    images: int = 6
    boxes: int = 6
    classes: int = 3
    crowds: float = 0.15
    detections: int = 12
    ids: tuple[int, ...] | None = None

    def annotations(self, rng: np.random.Generator) -> Annotations:
        counts = rng.integers(0, self.boxes + 1, size=self.images)
        counts[rng.integers(self.images)] = 0
        total = int(counts.sum())
        corners = rng.integers(0, 12, size=(total, 2)) * 8.0
        sides = rng.choice([8.0, 16, 32, 40, 96, 100], size=(total, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1)
        ids = self.ids or tuple(range(0, 3 * self.classes, 3))
        areas = sides.prod(axis=1)
        areas[::4] *= 0.75  # of masks: smaller than their boxes
        return Annotations(
            image_ids=rng.permutation(self.images * 5)[: self.images].astype(np.int64),
            file_names=tuple(f"{n}.jpg" for n in range(self.images)),
            sizes_hw=np.full((self.images, 2), 200, dtype=np.int64),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=boxes,
            labels=rng.integers(0, max(self.classes - 1, 1), size=total).astype(np.int64),
            crowd=rng.random(total) < self.crowds,
            areas=areas,
            categories=CategoryMap(ids=ids, names=tuple(f"class {n}" for n in ids)),
        )

    def draw_detections(
        self, rng: np.random.Generator, annotations: Annotations
    ) -> list[Detections]:
        """Near boxes, elsewhere, of the right class or another, several times the same."""
        result = []
        for row, image_id in enumerate(annotations.image_ids.tolist()):
            count = int(rng.integers(0, self.detections + 1))
            boxes_of_row = annotations.boxes[annotations.boxes_of(row)]
            labels = annotations.labels[annotations.boxes_of(row)]
            corners = rng.integers(0, 12, size=(count, 2)) * 8.0
            sides = rng.choice([8.0, 16, 32, 96], size=(count, 2))
            boxes = np.concatenate([corners, corners + sides], axis=1)
            picked = rng.integers(0, self.classes, size=count)
            if len(boxes_of_row):
                near = rng.random(count) < 0.7
                at = rng.integers(0, len(boxes_of_row), size=count)
                moved = boxes_of_row[at] + rng.integers(-1, 2, size=(count, 4)) * 4.0
                boxes = np.where((near & (moved[:, 2] > moved[:, 0]))[:, None], moved, boxes)
                picked = np.where(near & (rng.random(count) < 0.8), labels[at], picked)
            result.append(
                Detections(
                    image_id=image_id,
                    boxes=torch.from_numpy(boxes).float(),
                    scores=torch.from_numpy(rng.integers(1, 8, size=count) / 8.0).float(),
                    labels=torch.from_numpy(picked.astype(np.int64)),
                )
            )
        return result

    def draw(self, seed: int) -> tuple[Annotations, list[Detections]]:
        rng = np.random.default_rng(seed)
        annotations = self.annotations(rng)
        return annotations, self.draw_detections(rng, annotations)


def run_pycocotools(
    annotations: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    of: str = "bbox",
    limits: tuple[int, ...] = (1, 10, 100),
    use_classes: bool = True,
) -> Any:
    """The finished COCOeval on copies of what it is given."""
    coco = COCO()
    coco.dataset = {**annotations, "annotations": [dict(a) for a in annotations["annotations"]]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        if results:
            results_of = coco.loadRes([dict(row) for row in results])
        else:
            results_of = COCO()
            results_of.dataset = {**annotations, "annotations": []}
            results_of.createIndex()
        scored = COCOeval(coco, results_of, of)
        scored.params.maxDets = list(limits)
        scored.params.useCats = int(use_classes)
        scored.evaluate()
        scored.accumulate()
        if use_classes and limits == (1, 10, 100):
            scored.summarize()
    return scored


@pytest.fixture(scope="session")
def pycocotools() -> Callable[..., Any]:
    return run_pycocotools


@pytest.fixture(scope="session")
def scene() -> type[RandomScene]:
    return RandomScene

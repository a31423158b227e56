"""Small data sets with detections, analysed; and pages made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cachedet.evaluation.detection_table import tabulate
from cachedet.reporting.class_sections import annotation_section, class_section
from cachedet.reporting.content import Report
from cachedet.reporting.curve_sections import class_paths, curve_section
from cachedet.reporting.error_sections import confusion_section, error_section
from cachedet.reporting.image_sheet import Sheet
from cachedet.reporting.rendering import render_page
from cachedet.reporting.run_analysis import RunAnalysis, RunInput, analyse_runs
from cachedet.reporting.scores_sections import (
    make_headlines,
    result_section,
)
from cachedet.structures import Annotations, CategoryMap, Detections


class ReportKit:
    """What the tests of this room build reports from."""

    def annotations(
        self, *, images: int = 6, boxes: int = 4, names: Sequence[str] = ("disc", "star", "ring")
    ) -> Annotations:
        """Images of 640 x 480; the last has no boxes, the last class neither."""
        rng = np.random.default_rng(0)
        counts = np.full(images, boxes)
        counts[-1] = 0
        total = int(counts.sum())
        corners = rng.uniform([0, 0], [500, 380], size=(total, 2))
        corners_and_ends = np.concatenate(
            [corners, corners + rng.uniform(15, 130, size=(total, 2))], axis=1
        )
        return Annotations(
            image_ids=np.arange(images, dtype=np.int64) * 7 + 3,
            file_names=tuple(f"{n:05d}.jpg" for n in range(images)),
            sizes_hw=np.tile(np.array([[480, 640]], dtype=np.int64), (images, 1)),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=corners_and_ends,
            labels=(np.arange(total) % max(len(names) - 1, 1)).astype(np.int64),
            crowd=np.zeros(total, dtype=np.bool_),
            areas=(corners_and_ends[:, 2:] - corners_and_ends[:, :2]).prod(axis=1),
            categories=CategoryMap(ids=tuple(range(1, len(names) + 1)), names=tuple(names)),
        )

    def found(
        self, annotations: Annotations, *, seed: int, skill: float, clutter: int = 3
    ) -> list[Detections]:
        """Boxes near the true ones, right with chance `skill`, and `clutter` of them elsewhere."""
        rng = np.random.default_rng(seed)
        result = []
        for row, image_id in enumerate(annotations.image_ids.tolist()):
            own = annotations.boxes[annotations.boxes_of(row)]
            labels = annotations.labels[annotations.boxes_of(row)].copy()
            wrong = rng.random(len(own)) > skill
            labels[wrong] = (labels[wrong] + 1) % len(annotations.categories)
            elsewhere = rng.uniform(0, 400, size=(clutter, 2))
            boxes = [own + rng.normal(0, 4, own.shape), np.hstack([elsewhere, elsewhere + 60])]
            every = [labels, rng.integers(0, len(annotations.categories), clutter)]
            scores = [rng.uniform(0.3, 1, len(own)), rng.uniform(0, 0.6, clutter)]
            result.append(
                Detections(
                    image_id=image_id,
                    boxes=torch.from_numpy(np.concatenate(boxes)).float(),
                    scores=torch.from_numpy(np.concatenate(scores)).float(),
                    labels=torch.from_numpy(np.concatenate(every)),
                )
            )
        return result

    def analyse(
        self,
        annotations: Annotations,
        *found: list[Detections],
        training_boxes: dict[int, int] | None = None,
        resamples: int = 30,
    ) -> tuple[RunAnalysis, ...]:
        inputs = []
        for own in found:
            inputs.append(RunInput(table=tabulate(annotations, own), training_boxes=training_boxes))
        return analyse_runs(annotations, inputs, resamples=resamples, seed=0)

    def report(
        self,
        names: Sequence[str],
        analyses: Sequence[RunAnalysis],
        *,
        training: dict[int, int] | None = None,
    ) -> Report:
        return Report(
            title=" against ".join(names),
            standfirst="a few images",
            headlines=make_headlines(names, analyses),
            sections=(
                result_section(names, analyses, resamples=30),
                class_section(names, analyses, [training for _ in names]),
                annotation_section(names, analyses),
                error_section(names, analyses),
                confusion_section(names, analyses),
                curve_section(names, analyses),
            ),
            version="1.2.3",
            written="2026-11-24",
        )

    def page(
        self,
        names: Sequence[str],
        analyses: Sequence[RunAnalysis],
        *,
        training: dict[int, int] | None = None,
        sheet: Sheet | None = None,
    ) -> str:
        report = self.report(names, analyses, training=training)
        return render_page(report, curves=class_paths(analyses), sheet=sheet)

    def photographs(self, folder: Path, annotations: Annotations, *, kinds: int = 4) -> Path:
        """A JPEG for each image: `kinds` different ones of smooth shapes, texture and noise."""
        folder.mkdir(parents=True, exist_ok=True)
        contents = []
        for number in range(kinds):
            rng = np.random.default_rng(number)
            layers = np.zeros((480, 640, 3))
            for cells, weight in ((4, 70), (24, 40), (120, 22)):
                small = rng.uniform(-1, 1, size=(cells, cells, 3))
                small = ((small + 1) * 127).astype(np.uint8)
                grown = Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC)
                layers += weight * (np.asarray(grown) / 127 - 1)
            noisy = np.clip(128 + layers + rng.normal(0, 6, layers.shape), 0, 255)
            path = folder / annotations.file_names[number]
            Image.fromarray(noisy.astype(np.uint8)).save(path, quality=92)
            contents.append(path.read_bytes())
        for number, name in enumerate(annotations.file_names):
            (folder / name).write_bytes(contents[number % kinds])
        return folder


@pytest.fixture(scope="session")
def kit() -> ReportKit:
    return ReportKit()


@pytest.fixture(scope="session")
def two_runs(kit: ReportKit) -> tuple[Annotations, tuple[RunAnalysis, ...]]:
    annotations = kit.annotations()
    good, bad = kit.found(annotations, seed=1, skill=0.9), kit.found(annotations, seed=2, skill=0.3)
    return annotations, kit.analyse(annotations, good, bad, training_boxes={1: 5, 2: 50, 3: 5000})

"""Small data sets with detections, analysed; and pages made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from cachedet.reporting.scores_sections import make_headlines, result_section
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

    def detections(
        self, annotations: Annotations, *, seed: int, skill: float, clutter: int = 3
    ) -> list[Detections]:
        """Boxes near the true ones, right with chance `skill`, and `clutter` of them elsewhere."""
        rng = np.random.default_rng(seed)
        result = []
        for row, image_id in enumerate(annotations.image_ids.tolist()):
            held = annotations.boxes[annotations.boxes_of(row)]
            labels = annotations.labels[annotations.boxes_of(row)].copy()
            wrong = rng.random(len(held)) > skill
            labels[wrong] = (labels[wrong] + 1) % len(annotations.categories)
            elsewhere = rng.uniform(0, 400, size=(clutter, 2))
            boxes = [held + rng.normal(0, 4, held.shape), np.hstack([elsewhere, elsewhere + 60])]
            every = [labels, rng.integers(0, len(annotations.categories), clutter)]
            scores = [rng.uniform(0.3, 1, len(held)), rng.uniform(0, 0.6, clutter)]
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
        training_boxes: dict[int, int] | None = None,
        resamples: int = 30,
        **detections: list[Detections],
    ) -> tuple[RunAnalysis, ...]:
        """Analyse detections of runs by their names."""
        inputs = [
            RunInput(name=name, table=tabulate(annotations, of_run), training_boxes=training_boxes)
            for name, of_run in detections.items()
        ]
        return analyse_runs(annotations, inputs, resamples=resamples, seed=0)

    def report(self, runs: Sequence[RunAnalysis], *, names: Sequence[str] = ()) -> Report:
        """The page of runs, which may get other names."""
        if names:
            runs = [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
        return Report(
            title=" against ".join(run.name for run in runs),
            standfirst="a few images",
            headlines=make_headlines(runs),
            sections=(
                result_section(runs, resamples=30),
                class_section(runs),
                annotation_section(runs),
                error_section(runs),
                confusion_section(runs),
                curve_section(runs),
            ),
            version="1.2.3",
            written="2026-11-24",
        )

    def page(
        self, runs: Sequence[RunAnalysis], *, names: Sequence[str] = (), sheet: Sheet | None = None
    ) -> str:
        report = self.report(runs, names=names)
        return render_page(report, curves=class_paths(runs), sheet=sheet)

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
    runs = kit.analyse(
        annotations,
        training_boxes={1: 5, 2: 50, 3: 5000},
        good=kit.detections(annotations, seed=1, skill=0.9),
        bad=kit.detections(annotations, seed=2, skill=0.3),
    )
    return annotations, runs

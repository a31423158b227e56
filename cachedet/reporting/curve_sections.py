"""Sections of curves: precision against recall, calibration, training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cachedet.evaluation.curves import Curves
from cachedet.evaluation.precision import RECALLS
from cachedet.reporting.charts import (
    Chart,
    Point,
    Series,
    axis_from_zero,
    draw_chart,
    path_of,
    unit_axis,
)
from cachedet.reporting.content import Cell, Fold, Row, Section, Table, figure
from cachedet.reporting.run_analysis import RunAnalysis
from cachedet.reporting.scored_run import ScoredRun

PRECISION_CHART = "precision-recall"
MOST_CURVES = 40  # classes whose curves the page holds; report.json has all
_MOST_POINTS = 400  # of a training curve


@dataclass(frozen=True, kw_only=True)
class ClassPaths:
    """Paths of one class for the chart of precision against recall, one a run."""

    name: str
    paths: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "paths": list(self.paths)}


def curve_section(names: Sequence[str], analyses: Sequence[RunAnalysis]) -> Section:
    """Precision, recall, and whether scores mean what they say."""
    return Section(
        key="curves",
        title="Precision, recall and scores",
        short="Curves",
        leads=tuple(_cut_lead(n, own.curves) for n, own in zip(names, analyses, strict=True)),
        charts=(
            draw_chart(
                PRECISION_CHART,
                "Precision against recall",
                "Mean over all classes at IoU 0.5. " + _ends(names, analyses),
                x=unit_axis("recall"),
                y=unit_axis("precision"),
                series=[
                    Series(name=name, points=_mean_curve(own.curves))
                    for name, own in zip(names, analyses, strict=True)
                ],
            ),
            draw_chart(
                "calibration",
                "Calibration",
                "Share of detections that are right against their mean score, in ten bins. On the "
                "diagonal, a score of 0.7 is right in 7 of 10 cases.",
                x=unit_axis("mean score"),
                y=unit_axis("share that is right"),
                series=[
                    Series(name=name, points=_calibration(own.curves), dots=True)
                    for name, own in zip(names, analyses, strict=True)
                ],
                diagonal=True,
            ),
        ),
        folds=(Fold(title="Calibration in figures", table=_calibration_table(names, analyses)),),
        notes=("Cuts of single classes stand in the table of classes.",),
    )


def class_paths(analyses: Sequence[RunAnalysis]) -> tuple[ClassPaths, ...]:
    """The classes with the most boxes, in label order; the page offers them beside the mean."""
    scores = analyses[0].scores.per_class
    known = [label for label, score in enumerate(scores) if not math.isnan(score.ap)]
    most = sorted(known, key=lambda label: -scores[label].num_boxes)[:MOST_CURVES]
    x, y = unit_axis(""), unit_axis("")
    mean = ClassPaths(
        name="Mean over all classes",
        paths=tuple(path_of(_mean_curve(own.curves), x=x, y=y) for own in analyses),
    )
    return (
        mean,
        *(
            ClassPaths(
                name=scores[label].name,
                paths=tuple(
                    path_of(_points(own.curves.per_class[label].precision), x=x, y=y)
                    for own in analyses
                ),
            )
            for label in sorted(most)
        ),
    )


def training_section(runs: Sequence[ScoredRun]) -> Section:
    """Loss and validation AP over steps."""
    losses = [
        Series(name=run.name, points=_thin([(p.step, p.loss) for p in run.metrics])) for run in runs
    ]
    scores = [
        Series(
            name=run.name,
            points=_thin([(p.step, p.val_ap) for p in run.metrics if p.val_ap is not None]),
            dots=True,
        )
        for run in runs
    ]
    charts = tuple(
        chart
        for chart in (
            _over_steps("loss", "Training loss", "loss", losses),
            _over_steps("validation", "AP on the validation store", "AP", scores),
        )
        if chart is not None
    )
    return Section(
        key="training",
        title="Training",
        short="Training",
        leads=tuple(_training_lead(run) for run in runs),
        charts=charts,
        notes=(
            "The best of the validations chose the checkpoint; where it is scored on the same "
            "images, its AP is a little too good.",
        ),
    )


def _cut_lead(name: str, curves: Curves) -> str:
    best = curves.best
    if math.isnan(best.score):
        return f"{name}: no detections of boxes to draw a curve of."
    return (
        f"{name}: kept from score {figure(best.score, digits=2)} on, its detections are best "
        f"balanced: precision {figure(best.precision, digits=2)}, recall "
        f"{figure(best.recall, digits=2)}, F1 {figure(best.f1, digits=2)}. Scores are "
        f"{figure(curves.calibration_error, digits=2)} off on average."
    )


def _mean_curve(curves: Curves) -> list[Point]:
    known = [curve.precision for curve in curves.per_class if curve.precision]
    return _points(np.mean(known, axis=0).tolist()) if known else []


def _points(precision: Sequence[float]) -> list[Point]:
    return list(zip(RECALLS.tolist(), precision, strict=True)) if len(precision) else []


def _ends(names: Sequence[str], analyses: Sequence[RunAnalysis]) -> str:
    """The area under each curve in words."""
    told = [f"{n}: AP50 {figure(a.scores.ap50)}" for n, a in zip(names, analyses, strict=True)]
    return ", ".join(told) + "."


def _calibration(curves: Curves) -> list[Point]:
    return [(own.mean_score, own.precision) for own in curves.calibration if own.count]


def _calibration_table(names: Sequence[str], analyses: Sequence[RunAnalysis]) -> Table:
    rows = []
    for number, own in enumerate(analyses[0].curves.calibration):
        found = [analysis.curves.calibration[number] for analysis in analyses]
        cells = tuple(
            Cell(text=figure(bin_.precision, digits=2), note=f"{bin_.count:,}") for bin_ in found
        )
        rows.append(Row(name=f"{own.low:.1f} to {own.high:.1f}", cells=cells))
    return Table(
        caption="Share of detections that are right, and how many there are, by score.",
        corner="Score",
        columns=tuple(names),
        rows=tuple(rows),
    )


def _over_steps(key: str, title: str, name: str, series: Sequence[Series]) -> Chart | None:
    """None where no run has such points."""
    points = [point for own in series for point in own.points]
    if not points:
        return None
    ends = [f"{own.name} ends at {own.points[-1][1]:.3f}" for own in series if own.points]
    return draw_chart(
        key,
        title,
        ", ".join(ends) + ".",
        x=axis_from_zero("step", max(step for step, _ in points)),
        y=axis_from_zero(name, max(value for _, value in points)),
        series=series,
    )


def _thin(points: Sequence[tuple[int, float | None]]) -> list[Point]:
    """At most `_MOST_POINTS`: means of neighbours."""
    known = np.array([(a, b) for a, b in points if b is not None], dtype=np.float64).reshape(-1, 2)
    groups = np.array_split(known, min(len(known), _MOST_POINTS)) if len(known) else []
    return [(float(own[:, 0].mean()), float(own[:, 1].mean())) for own in groups]


def _training_lead(run: ScoredRun) -> str:
    known = [(p.val_ap, p.step) for p in run.metrics if p.val_ap is not None]
    if not known:
        return f"{run.name}: no validation recorded in metrics.csv."
    best, step = max(known)
    return (
        f"{run.name}: best validation AP {best:.3f} at step {step:,} of {run.metrics[-1].step:,}."
    )

"""Sections of curves: precision against recall, calibration, training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
from cachedet.reporting.content import Cell, Fold, Row, Section, Table
from cachedet.reporting.figures import count, figure
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


def curve_section(runs: Sequence[RunAnalysis]) -> Section:
    """Precision, recall, and whether scores mean what they say."""
    ends = ", ".join(f"{run.name}: AP50 {figure(run.scores.ap50)}" for run in runs)
    return Section(
        key="curves",
        title="Precision, recall and scores",
        short="Curves",
        leads=tuple(_cut_lead(run.name, run.curves) for run in runs),
        charts=(
            draw_chart(
                PRECISION_CHART,
                "Precision against recall",
                f"Mean over all classes at IoU 0.5. {ends}.",
                x=unit_axis("recall"),
                y=unit_axis("precision"),
                series=[Series(name=run.name, points=_mean_curve(run.curves)) for run in runs],
            ),
            draw_chart(
                "calibration",
                "Calibration",
                "Share of detections that are right against their mean score, in ten bins. On the "
                "diagonal, a score of 0.7 is right in 7 of 10 cases.",
                x=unit_axis("mean score"),
                y=unit_axis("share that is right"),
                series=[
                    Series(name=run.name, points=_calibration(run.curves), dots=True)
                    for run in runs
                ],
                diagonal=True,
            ),
        ),
        folds=(Fold(title="Calibration in figures", table=_calibration_table(runs)),),
        notes=("Cuts of single classes stand in the table of classes.",),
    )


def class_paths(runs: Sequence[RunAnalysis]) -> tuple[ClassPaths, ...]:
    """The classes with the most boxes, in label order; the page offers them beside the mean."""
    scores = runs[0].scores.per_class
    known = [label for label, score in enumerate(scores) if not math.isnan(score.ap)]
    most = sorted(known, key=lambda label: -scores[label].num_boxes)[:MOST_CURVES]
    x, y = unit_axis(""), unit_axis("")
    lines = [("Mean over all classes", [_mean_curve(run.curves) for run in runs])]
    lines += [
        (scores[label].name, [_points(run.curves.per_class[label].precision) for run in runs])
        for label in sorted(most)
    ]
    return tuple(
        ClassPaths(name=name, paths=tuple(path_of(points, x=x, y=y) for points in of_runs))
        for name, of_runs in lines
    )


def training_section(runs: Sequence[ScoredRun]) -> Section:
    """Loss and validation AP over steps."""
    losses = [
        Series(name=run.name, points=_thin([(p.step, p.loss) for p in run.metrics])) for run in runs
    ]
    scores = [
        Series(name=run.name, points=_thin([(p.step, p.val_ap) for p in run.metrics]), dots=True)
        for run in runs
    ]
    return Section(
        key="training",
        title="Training",
        short="Training",
        leads=tuple(_training_lead(run) for run in runs),
        charts=(
            *_over_steps("loss", "Training loss", "loss", losses),
            *_over_steps("validation", "AP on the validation store", "AP", scores),
        ),
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


def _calibration(curves: Curves) -> list[Point]:
    return [(bin_.mean_score, bin_.precision) for bin_ in curves.calibration if bin_.count]


def _calibration_table(runs: Sequence[RunAnalysis]) -> Table:
    by_score = zip(*(run.curves.calibration for run in runs), strict=True)
    rows = tuple(
        Row(
            name=f"{bins[0].low:.1f} to {bins[0].high:.1f}",
            cells=tuple(
                Cell(text=figure(bin_.precision, digits=2), note=count(bin_.count)) for bin_ in bins
            ),
        )
        for bins in by_score
    )
    return Table(
        caption="Share of detections that are right, and how many there are, by score.",
        corner="Score",
        columns=tuple(run.name for run in runs),
        rows=rows,
    )


def _over_steps(key: str, title: str, name: str, series: Sequence[Series]) -> tuple[Chart, ...]:
    """Draw the series over steps; no chart where no run has such points."""
    points = [point for each in series for point in each.points]
    if not points:
        return ()
    ends = [f"{each.name} ends at {each.points[-1][1]:.3f}" for each in series if each.points]
    x = axis_from_zero("step", max(step for step, _ in points))
    y = axis_from_zero(name, max(value for _, value in points))
    return (draw_chart(key, title, f"{', '.join(ends)}.", x=x, y=y, series=series),)


def _thin(points: Sequence[tuple[int, float | None]]) -> list[Point]:
    """Average neighbours until at most `_MOST_POINTS` are left of those that have a value."""
    known = np.array([(a, b) for a, b in points if b is not None], dtype=np.float64).reshape(-1, 2)
    groups = np.array_split(known, min(len(known), _MOST_POINTS)) if len(known) else []
    return [(float(group[:, 0].mean()), float(group[:, 1].mean())) for group in groups]


def _training_lead(run: ScoredRun) -> str:
    known = [(p.val_ap, p.step) for p in run.metrics if p.val_ap is not None]
    if not known:
        return f"{run.name}: no validation recorded in metrics.csv."
    best, step = max(known)
    return (
        f"{run.name}: best validation AP {best:.3f} at step {step:,} of {run.metrics[-1].step:,}."
    )

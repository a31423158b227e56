"""Sections of what goes wrong: kinds of errors, and which class is taken for which."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cachedet.evaluation.confusion import ConfusionMatrix
from cachedet.evaluation.error_kinds import ErrorCost
from cachedet.reporting.content import Cell, Fold, Row, Section, Table
from cachedet.reporting.figures import ABSENT, count, figure
from cachedet.reporting.run_analysis import RunAnalysis

MOST_CLASSES = 12  # of a confusion matrix that is shown whole
MOST_PAIRS = 30  # of the most confused pairs otherwise
_MEANINGS = {
    "localisation": "right class, box too far off (IoU 0.1 to 0.5)",
    "classification": "box right, class wrong",
    "duplicate": "a second detection of a box",
    "background": "a detection where nothing is",
    "both": "wrong class and box far off",
    "missed": "a box that nothing found",
}


def error_section(runs: Sequence[RunAnalysis]) -> Section:
    """What each kind of error costs."""
    most = max((cost.cost for run in runs for cost in run.errors.kinds), default=0.0)
    rows = [
        Row(
            name=kind,
            note=meaning,
            cells=tuple(_cost_cell(run.errors.kinds[number], most=most) for run in runs),
        )
        for number, (kind, meaning) in enumerate(_MEANINGS.items())
    ]
    sums = {
        "all wrong detections": [run.errors.false_positives for run in runs],
        "all boxes not found": [run.errors.false_negatives for run in runs],
    }
    rows += [
        Row(name=name, cells=tuple(_cost_cell(cost, most=None) for cost in costs))
        for name, costs in sums.items()
    ]
    table = Table(
        caption="AP50 that would be gained if one kind of error alone were put right, and how "
        "often it occurs.",
        corner="Kind",
        columns=tuple(run.name for run in runs),
        rows=tuple(rows),
    )
    return Section(
        key="errors",
        title="Where the errors come from",
        short="Errors",
        leads=tuple(map(_lead, runs)),
        tables=(table,),
        notes=(
            "Kinds are those of TIDE (arXiv 2008.08115), at IoU 0.5. Each is put right on its "
            "own, so costs do not add up. Detections of every score count.",
        ),
    )


def confusion_section(runs: Sequence[RunAnalysis]) -> Section:
    """Which class is taken for which, above the best score of each run."""
    classes = len(runs[0].confusion.categories)
    has_matrix = classes <= MOST_CLASSES
    how = (
        "Read along a line: what became of the boxes of that class."
        if has_matrix
        else f"Of {count(classes)} classes, the {MOST_PAIRS} pairs that are confused most often."
    )
    return Section(
        key="confusion",
        title="What is taken for what",
        short="Confusion",
        leads=(
            "Counts of detections above the score at which F1 of all classes together is best. "
            + how,
        ),
        folds=tuple(
            Fold(
                title=f"{run.name}, scores from {figure(run.confusion.min_score, digits=2)}",
                table=_matrix(run.confusion) if has_matrix else _pairs(run.confusion),
                is_open=number == 0,
            )
            for number, run in enumerate(runs)
        ),
    )


def _cost_cell(cost: ErrorCost, *, most: float | None) -> Cell:
    bar = None if most is None else max(cost.cost, 0.0) / most if most > 0 else 0.0
    text, note = figure(cost.cost), count(cost.count)
    return Cell(text=text, note=note, bar=None if math.isnan(cost.cost) else bar)


def _lead(run: RunAnalysis) -> str:
    known = [cost for cost in run.errors.kinds if not math.isnan(cost.cost)]
    if not known:
        return f"{run.name}: there are no boxes to find, so no error has a cost."
    worst = max(known, key=lambda cost: cost.cost)
    if worst.cost <= 0:
        return f"{run.name}: no single kind of error costs AP50."
    return (
        f"{run.name}: {worst.kind} costs most, {figure(worst.cost)} AP50 "
        f"({_MEANINGS[worst.kind]}; {count(worst.count)} times)."
    )


def _matrix(confusion: ConfusionMatrix) -> Table:
    names = (*confusion.categories.names, "nothing")
    rows = []
    for true_class, name in enumerate(names):
        counts = confusion.counts[true_class]
        total = max(int(counts.sum()), 1)
        cells = tuple(
            Cell(text=ABSENT, tone="faint")
            if true_class == detected == len(names) - 1
            else Cell(text=count(number), shade=number / total)
            for detected, number in enumerate(counts.tolist())
        )
        rows.append(Row(name=name, cells=cells))
    return Table(
        caption="Lines: what is there. Columns: what was detected. The shade is the share of the "
        "line.",
        corner="there",
        columns=names,
        rows=tuple(rows),
    )


def _pairs(confusion: ConfusionMatrix) -> Table:
    """The most frequent confusions between classes; boxes missed and false alarms stand apart."""
    names, classes = confusion.categories.names, len(confusion.categories)
    between = confusion.counts[:classes, :classes].copy()
    np.fill_diagonal(between, 0)
    totals = confusion.counts.sum(axis=1)
    rows = []
    for index in np.argsort(-between, axis=None, kind="stable")[:MOST_PAIRS].tolist():
        true_class, detected = divmod(index, classes)
        number = int(between[true_class, detected])
        if not number:
            break
        share = number / totals[true_class]
        cells = (
            Cell(text=names[detected], is_name=True),
            Cell(text=count(number), rank=number),
            Cell(text=f"{share:.0%}", rank=share),
        )
        rows.append(Row(name=names[true_class], cells=cells))
    missed = int(confusion.counts[:classes, classes].sum())
    alarms = int(confusion.counts[classes, :classes].sum())
    return Table(
        caption=f"Beside these, {count(missed)} boxes were detected as nothing and {count(alarms)} "
        "detections are of nothing." + ("" if rows else " No box was detected as another class."),
        corner="there",
        columns=("detected as", "boxes", "of the class"),
        rows=tuple(rows),
    )

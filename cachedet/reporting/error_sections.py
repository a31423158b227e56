"""Sections of what goes wrong: kinds of errors, and which class is taken for which."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cachedet.evaluation.confusion import ConfusionMatrix
from cachedet.reporting.content import ABSENT, Cell, Fold, Row, Section, Table, count, figure
from cachedet.reporting.run_analysis import RunAnalysis

MOST_CLASSES = 12  # of a confusion matrix that is shown whole
MOST_PAIRS = 30  # of the most confused pairs otherwise
_NOTHING = "nothing"

_MEANINGS = {
    "localisation": "right class, box too far off (IoU 0.1 to 0.5)",
    "classification": "box right, class wrong",
    "duplicate": "a second detection of a box",
    "background": "a detection where nothing is",
    "both": "wrong class and box far off",
    "missed": "a box that nothing found",
}


def error_section(names: Sequence[str], analyses: Sequence[RunAnalysis]) -> Section:
    """What each kind of error costs."""
    most = max((cost.cost for own in analyses for cost in own.errors.kinds), default=0.0)
    rows = []
    for number, kind in enumerate(_MEANINGS):
        cells = []
        for own in analyses:
            cost = own.errors.kinds[number]
            cells.append(_cost_cell(cost.cost, cost.count, most=most))
        rows.append(Row(name=kind, note=_MEANINGS[kind], cells=tuple(cells)))
    for name, pick in (("all wrong detections", "false_positives"),
                       ("all boxes not found", "false_negatives")):  # fmt: skip
        found = [getattr(own.errors, pick) for own in analyses]
        rows.append(
            Row(name=name, cells=tuple(_cost_cell(c.cost, c.count, most=None) for c in found))
        )
    return Section(
        key="errors",
        title="Where the errors come from",
        short="Errors",
        leads=tuple(_lead(name, own) for name, own in zip(names, analyses, strict=True)),
        tables=(
            Table(
                caption="AP50 that would be gained if one kind of error alone were put right, and "
                "how often it occurs.",
                corner="Kind",
                columns=tuple(names),
                rows=tuple(rows),
            ),
        ),
        notes=(
            "Kinds are those of TIDE (arXiv 2008.08115), at IoU 0.5. Each is put right on its "
            "own, so costs do not add up. Detections of every score count.",
        ),
    )


def confusion_section(names: Sequence[str], analyses: Sequence[RunAnalysis]) -> Section:
    """Which class is taken for which, above the best score of each run."""
    whole = len(analyses[0].confusion.categories) <= MOST_CLASSES
    return Section(
        key="confusion",
        title="What is taken for what",
        short="Confusion",
        leads=(
            "Counts of detections above the score at which F1 of all classes together is best. "
            + (
                "Read along a line: what became of the boxes of that class."
                if whole
                else f"Of {count(len(analyses[0].confusion.categories))} classes, the "
                f"{MOST_PAIRS} pairs that are confused most often."
            ),
        ),
        folds=tuple(
            Fold(
                title=f"{name}, scores from {figure(own.confusion.min_score, digits=2)}",
                table=_matrix(own.confusion) if whole else _pairs(own.confusion),
                is_open=number == 0,
            )
            for number, (name, own) in enumerate(zip(names, analyses, strict=True))
        ),
    )


def _cost_cell(cost: float, number: int, *, most: float | None) -> Cell:
    bar = None if most is None else max(cost, 0.0) / most if most > 0 else 0.0
    return Cell(text=figure(cost), note=count(number), bar=None if math.isnan(cost) else bar)


def _lead(name: str, own: RunAnalysis) -> str:
    known = [cost for cost in own.errors.kinds if not math.isnan(cost.cost)]
    if not known:
        return f"{name}: there are no boxes to find, so no error has a cost."
    worst = max(known, key=lambda cost: cost.cost)
    if worst.cost <= 0:
        return f"{name}: no single kind of error costs AP50."
    return (
        f"{name}: {worst.kind} costs most, {figure(worst.cost)} AP50 "
        f"({_MEANINGS[worst.kind]}; {count(worst.count)} times)."
    )


def _matrix(confusion: ConfusionMatrix) -> Table:
    names = [*confusion.categories.names, _NOTHING]
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
        columns=tuple(names),
        rows=tuple(rows),
    )


def _pairs(confusion: ConfusionMatrix) -> Table:
    """The most frequent confusions between classes; boxes missed and false alarms stand apart."""
    classes = len(confusion.categories)
    between = confusion.counts[:classes, :classes].copy()
    np.fill_diagonal(between, 0)
    order = np.argsort(-between, axis=None, kind="stable")[:MOST_PAIRS]
    rows = []
    totals = confusion.counts.sum(axis=1)
    for place in order.tolist():
        true_class, detected = divmod(place, classes)
        number = int(between[true_class, detected])
        if not number:
            break
        cells = (
            Cell(text=confusion.categories.names[detected], is_name=True),
            Cell(text=count(number), rank=number),
            Cell(text=f"{number / totals[true_class]:.0%}", rank=number / totals[true_class]),
        )
        rows.append(Row(name=confusion.categories.names[true_class], cells=cells))
    missed = int(confusion.counts[:classes, classes].sum())
    alarms = int(confusion.counts[classes, :classes].sum())
    return Table(
        caption=f"Beside these, {count(missed)} boxes were detected as nothing and {count(alarms)} "
        "detections are of nothing." + ("" if rows else " No box was detected as another class."),
        corner="there",
        columns=("detected as", "boxes", "of the class"),
        rows=tuple(rows),
    )

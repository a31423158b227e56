"""Sections of classes: each of them, and bins of them by their training annotations."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cachedet.evaluation.strata import Stratum
from cachedet.reporting.content import Cell, Row, Section, Table
from cachedet.reporting.figures import ABSENT, count, count_classes, figure, rank_of, span
from cachedet.reporting.run_analysis import RunAnalysis
from cachedet.reporting.scores_sections import FEWEST_IMAGES, difference_cell, of_run

_MAIN_FINDING = (
    "The fewer annotations a class has, the more a frozen backbone helps: the main finding of "
    "arXiv 2204.00484. Classes are grouped by their boxes in the training data."
)
_NO_STRATA = (
    "Not recorded: no run here has the training.json that cachedet train-heads writes when it "
    "starts."
)
_CUT = "Cut at: the score at which F1 is best at IoU 0.5, with precision and recall there."
_GAIN = (
    "Gain: AP minus that of the first run. Of many classes, one in twenty is better or worse by "
    f"chance; one that fewer than {FEWEST_IMAGES} images hold gets no verdict."
)


def class_section(runs: Sequence[RunAnalysis]) -> Section:
    """AP and best cut of every class."""
    counted = _columns_of_counts(runs)
    columns = ["boxes", *counted]
    for number, run in enumerate(runs):
        heads = ("AP", "gain", "cut at") if number else ("AP", "cut at")
        columns += [of_run(head, run, runs) for head in heads]
    rows = []
    for label, score in enumerate(runs[0].scores.per_class):
        cells = [Cell(text=count(score.num_boxes), rank=score.num_boxes)]
        for counts in counted.values():
            number_of = counts.get(score.category_id)
            text = ABSENT if number_of is None else count(number_of)
            cells.append(Cell(text=text, rank=number_of))
        for run in runs:
            cells += _class_cells(run, label)
        rows.append(Row(name=score.name, cells=tuple(cells)))
    table = Table(
        caption=f"{count_classes(len(rows))}. A dash: the scored images hold no such box.",
        corner="Class",
        columns=tuple(columns),
        rows=tuple(rows),
        sortable=True,
    )
    return Section(
        key="classes",
        title="Class by class",
        short="Classes",
        leads=(_class_lead(runs[0]),),
        tables=(table,),
        notes=(_CUT, _GAIN) if len(runs) > 1 else (_CUT,),
    )


def annotation_section(runs: Sequence[RunAnalysis]) -> Section:
    """AP by the number of training annotations of a class; bins without a class are left out."""
    noted = [run.analysis.strata for run in runs if run.analysis.strata is not None]
    rows = [
        Row(
            name=f"{stratum.name} annotations",
            cells=tuple(
                _stratum_cell(None if run.analysis.strata is None else run.analysis.strata[number])
                for run in runs
            ),
        )
        for number, stratum in enumerate(noted[0] if noted else ())
        if any(strata[number].num_classes for strata in noted)
    ]
    table = Table(
        caption="Mean AP of the classes in each bin that have boxes in the scored images, and how "
        "many these are.",
        corner="Training boxes",
        columns=tuple(of_run("AP", run, runs) for run in runs),
        rows=tuple(rows),
    )
    return Section(
        key="annotations",
        title="By number of training annotations",
        short="Annotations",
        leads=(_MAIN_FINDING,) if rows else (_MAIN_FINDING, _NO_STRATA),
        tables=(table,) if rows else (),
    )


def _stratum_cell(stratum: Stratum | None) -> Cell:
    if stratum is None:
        return Cell(text="not recorded", tone="faint")
    scored = f"{count(stratum.num_scored)} of {count_classes(stratum.num_classes)}"
    return Cell(text=figure(stratum.ap), note=scored if stratum.num_classes else "no class")


def _class_cells(run: RunAnalysis, label: int) -> list[Cell]:
    ap, best = run.scores.per_class[label].ap, run.curves.per_class[label].best
    interval = run.intervals.per_class[label]
    interval_text = span(interval.low, interval.high, absent="")
    cells = [Cell(text=figure(ap), note=interval_text, rank=rank_of(ap))]
    if run.difference is not None:
        gain = run.difference.per_class[label]
        cells.append(difference_cell(gain, num_images=run.class_images[label]))
    if math.isnan(best.score):
        return [*cells, Cell(text=ABSENT)]
    note = f"P {figure(best.precision, digits=2)}, R {figure(best.recall, digits=2)}"
    return [*cells, Cell(text=figure(best.score, digits=2), note=note, rank=best.score)]


def _columns_of_counts(runs: Sequence[RunAnalysis]) -> dict[str, dict[int, int]]:
    """One column of training boxes where all runs learnt from as many, else one a run."""
    counts = [run.analysis.training_boxes for run in runs]
    if counts[0] is not None and all(of_other == counts[0] for of_other in counts):
        return {"in training": counts[0]}
    return {
        of_run("in training", run, runs): of_this
        for run, of_this in zip(runs, counts, strict=True)
        if of_this is not None
    }


def _class_lead(run: RunAnalysis) -> str:
    known = [score for score in run.scores.per_class if not math.isnan(score.ap)]
    if not known:
        return "The scored images hold boxes of no class."
    if len(known) == 1:
        return f"The scored images hold boxes of one class only, {known[0].name}."
    low, high = (pick(known, key=lambda score: score.ap) for pick in (min, max))
    return (
        f"{run.name} is best at {high.name} (AP {figure(high.ap)}) and worst at {low.name} "
        f"(AP {figure(low.ap)}), of {count(len(known))} classes that can be scored."
    )

"""Sections of classes: each of them, and bins of them by their training annotations."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cachedet.reporting.content import (
    ABSENT,
    Cell,
    Row,
    Section,
    Table,
    count,
    count_classes,
    figure,
    span,
)
from cachedet.reporting.run_analysis import RunAnalysis
from cachedet.reporting.scores_sections import (
    FEWEST_IMAGES,
    difference_cell,
    of_run,
)


def class_section(
    names: Sequence[str],
    analyses: Sequence[RunAnalysis],
    training: Sequence[dict[int, int] | None],
) -> Section:
    """AP and best cut of every class."""
    counted = _columns_of_counts(names, training)
    columns = ["boxes", *counted]
    for number, name in enumerate(names):
        columns += [of_run("AP", name, names)]
        columns += [of_run("gain", name, names)] if number else []
        columns += [of_run("cut at", name, names)]
    rows = []
    for label, score in enumerate(analyses[0].scores.per_class):
        cells = [Cell(text=count(score.num_boxes), rank=score.num_boxes)]
        for counts in counted.values():
            num_training = counts.get(score.category_id)
            cells.append(
                Cell(
                    text=ABSENT if num_training is None else count(num_training), rank=num_training
                )
            )
        for own in analyses:
            cells += _class_cells(own, label)
        rows.append(Row(name=score.name, cells=tuple(cells)))
    several = (
        (
            "Gain: AP minus that of the first run. Of many classes, one in twenty is better or "
            f"worse by chance; one that fewer than {FEWEST_IMAGES} images hold gets no "
            "verdict.",
        )
        if len(names) > 1
        else ()
    )
    return Section(
        key="classes",
        title="Class by class",
        short="Classes",
        leads=(_class_lead(names[0], analyses[0]),),
        tables=(
            Table(
                caption=f"{count_classes(len(rows))}. A dash: the scored images hold no such box.",
                corner="Class",
                columns=tuple(columns),
                rows=tuple(rows),
                sortable=True,
            ),
        ),
        notes=(
            "Cut at: the score at which F1 is best at IoU 0.5, with precision and recall there.",
            *several,
        ),
    )


def annotation_section(names: Sequence[str], analyses: Sequence[RunAnalysis]) -> Section:
    """AP by the number of training annotations of a class."""
    known = next((own.strata for own in analyses if own.strata is not None), None)
    lead = (
        "The fewer annotations a class has, the more a frozen backbone helps: the main finding of "
        "arXiv 2204.00484. Classes are grouped by their boxes in the training data."
    )
    if known is None:
        return Section(
            key="annotations",
            title="By number of training annotations",
            short="Annotations",
            leads=(
                lead,
                "Not recorded: no run here has the training.json that cachedet train-heads writes "
                "when it starts.",
            ),
        )
    rows = []
    for number, stratum in enumerate(known):
        cells = []
        for own in analyses:
            found = None if own.strata is None else own.strata[number]
            cells.append(
                Cell(text="not recorded", tone="faint")
                if found is None
                else Cell(
                    text=figure(found.ap),
                    note=f"{count(found.num_scored)} of {count_classes(found.num_classes)}"
                    if found.num_classes
                    else "no class",
                )
            )
        rows.append(Row(name=f"{stratum.name} annotations", cells=tuple(cells)))
    return Section(
        key="annotations",
        title="By number of training annotations",
        short="Annotations",
        leads=(lead,),
        tables=(
            Table(
                caption="Mean AP of the classes in each bin that have boxes in the scored "
                "images, and how many these are.",
                corner="Training boxes",
                columns=tuple(of_run("AP", name, names) for name in names),
                rows=tuple(rows),
            ),
        ),
    )


def _class_cells(own: RunAnalysis, label: int) -> list[Cell]:
    score, best = own.scores.per_class[label], own.curves.per_class[label].best
    interval = own.intervals.per_class[label]
    cells = [
        Cell(
            text=figure(score.ap),
            note="" if math.isnan(interval.low) else span(interval),
            rank=None if math.isnan(score.ap) else score.ap,
        )
    ]
    if own.difference is not None:
        cells.append(
            difference_cell(own.difference.per_class[label], num_images=own.class_images[label])
        )
    if math.isnan(best.score):
        return [*cells, Cell(text=ABSENT)]
    note = f"P {figure(best.precision, digits=2)}, R {figure(best.recall, digits=2)}"
    return [*cells, Cell(text=figure(best.score, digits=2), note=note, rank=best.score)]


def _columns_of_counts(
    names: Sequence[str], training: Sequence[dict[int, int] | None]
) -> dict[str, dict[int, int]]:
    """One column of training boxes where all runs learnt from as many, else one a run."""
    known = {name: own for name, own in zip(names, training, strict=True) if own is not None}
    if len(known) == len(names) and all(own == training[0] for own in known.values()):
        return {"in training": known[names[0]]}
    return {of_run("in training", name, names): own for name, own in known.items()}


def _class_lead(name: str, own: RunAnalysis) -> str:
    known = [score for score in own.scores.per_class if not math.isnan(score.ap)]
    if not known:
        return "The scored images hold boxes of no class."
    if len(known) == 1:
        return f"The scored images hold boxes of one class only, {known[0].name}."
    low, high = (pick(known, key=lambda score: score.ap) for pick in (min, max))
    return (
        f"{name} is best at {high.name} (AP {figure(high.ap)}) and worst at {low.name} "
        f"(AP {figure(low.ap)}), of {count(len(known))} classes that can be scored."
    )

"""What the commands print of scores, for a person at a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from cachedet.commands.tables import console, figure, make_table, name_cell, say_prose, span
from cachedet.progress import count_of

if TYPE_CHECKING:  # commands import what they need when they run: `--help` stays quick
    from cachedet.evaluation.analysis import Analysis
    from cachedet.evaluation.error_kinds import ErrorReport
    from cachedet.evaluation.lvis import LvisScores
    from cachedet.evaluation.metrics import ClassScore, CocoScores
    from cachedet.evaluation.proposals import ProposalReport
    from cachedet.evaluation.significance import BootstrapReport, ComparisonReport, Interval
    from cachedet.evaluation.strata import Stratum

_MOST_CLASSES = 40  # listed one by one; of more, the best and the worst
_OF_EACH_END = 10
_MOST_DIFFERENCES = 20
_FEW_IMAGES = 20  # the percentile bootstrap covers too little of what so few could be


def print_scores(scores: CocoScores, *, of: str) -> None:
    """COCO's 12 figures and one line for each class."""
    _print_figures(scores, of=of)
    _print_classes(scores.per_class)


def print_analysis(analysis: Analysis) -> None:
    """All tables and notes of an analysis, the most asked for first."""
    _print_figures(analysis.scores, of="boxes")
    if analysis.mask_scores is not None:
        _print_figures(analysis.mask_scores, of="masks")
    for lvis, of in ((analysis.lvis, "boxes"), (analysis.mask_lvis, "masks")):
        if lvis is not None:
            _print_lvis(lvis, of=of)
    _print_classes(
        analysis.scores.per_class,
        training_boxes=analysis.training_boxes,
        cuts=[curve.best.score for curve in analysis.curves.per_class],
        intervals=analysis.intervals.per_class if analysis.intervals is not None else None,
        lvis=analysis.lvis.per_class if analysis.lvis is not None else None,
    )
    if analysis.mask_scores is not None:
        _print_classes(analysis.mask_scores.per_class, title="per class, masks")
    if analysis.strata is not None:
        _print_strata(analysis.strata)
    _print_errors(analysis.errors)
    _print_cut(analysis)
    if analysis.intervals is not None:
        _print_intervals(analysis.intervals)
    if analysis.comparison is not None:
        _print_comparison(analysis.comparison, analysis.scores.per_class)
    _print_oddities(analysis.oddities)
    for note in analysis.notes:
        say_prose(f"note: {note}")


def print_proposals(report: ProposalReport) -> None:
    """Average recall of the RPN's proposals."""
    title = f"recall of proposals (the RPN keeps {report.most_per_image} an image)"
    columns = ("proposals", "AR", "small", "medium", "large", "at 0.5", "at 0.75")
    table = make_table(title, *columns)
    for at in report.at_limits:
        recalls = (at.ar, at.ar_small, at.ar_medium, at.ar_large, at.recall50, at.recall75)
        table.add_row(str(at.limit), *map(figure, recalls))
    console.print(table)


def _print_figures(scores: CocoScores, *, of: str) -> None:
    rows = [
        [("AP", scores.ap), ("AP50", scores.ap50), ("AP75", scores.ap75)],
        [("AP small", scores.ap_small), ("medium", scores.ap_medium), ("large", scores.ap_large)],
        [("AR 1", scores.ar1), ("10", scores.ar10), ("100", scores.ar100)],
        [("AR small", scores.ar_small), ("medium", scores.ar_medium), ("large", scores.ar_large)],
    ]
    _print_grid(f"COCO figures of {of}", rows)


def _print_lvis(lvis: LvisScores, *, of: str) -> None:
    rows = [
        [("AP", lvis.ap), ("AP50", lvis.ap50), ("AP75", lvis.ap75)],
        [("AP rare", lvis.ap_rare), ("common", lvis.ap_common), ("frequent", lvis.ap_frequent)],
        [("AP small", lvis.ap_small), ("medium", lvis.ap_medium), ("large", lvis.ap_large)],
        [("AR small", lvis.ar_small), ("medium", lvis.ar_medium), ("large", lvis.ar_large)],
        [("AR 300", lvis.ar300)],
    ]
    _print_grid(f"LVIS v1 figures of {of}", rows)


def _print_grid(title: str, rows: Sequence[Sequence[tuple[str, float]]]) -> None:
    table = Table(title=title, show_header=False)
    for _ in rows[0]:
        table.add_column()
        table.add_column(justify="right")
    for row in rows:
        table.add_row(*(cell for name, value in row for cell in (name, figure(value))))
    console.print(table)


def _print_classes(
    scores: Sequence[ClassScore],
    *,
    training_boxes: Mapping[int, int] | None = None,
    cuts: Sequence[float] | None = None,
    intervals: Sequence[Interval] | None = None,
    lvis: Sequence[float] | None = None,
    title: str = "per class",
) -> None:
    """A line for each class, or for the best and the worst where they are many."""
    columns: dict[str, Sequence[str]] = {
        "boxes": [str(score.num_boxes) for score in scores],
        "AP": [figure(score.ap) for score in scores],
    }
    if lvis is None:
        columns["AP50"] = [figure(score.ap50) for score in scores]
    else:  # instead of it: more would not fit
        columns["LVIS AP"] = [figure(ap) for ap in lvis]
    if training_boxes is not None:
        columns["train"] = [str(training_boxes[score.category_id]) for score in scores]
    if intervals is not None:
        columns["95 % of AP"] = [span(interval.low, interval.high) for interval in intervals]
    if cuts is not None:
        columns["best cut"] = [figure(cut) for cut in cuts]
    table = Table(title=title)
    table.add_column("class")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    shown = _choose_classes(scores)
    for index in shown:
        table.add_row(
            name_cell(scores[index].name), *(column[index] for column in columns.values())
        )
    console.print(table)
    if len(shown) < len(scores):
        without = sum(math.isnan(score.ap) for score in scores)
        say_prose(
            f"best and worst by AP; {_count_classes(len(scores) - len(shown))} of {len(scores)} "
            f"left out, {without} of them without boxes here: --json has all"
        )


def _choose_classes(scores: Sequence[ClassScore]) -> list[int]:
    """The indices of all classes, or of those with the best AP and the worst, falling."""
    if len(scores) <= _MOST_CLASSES:
        return list(range(len(scores)))
    known = [index for index, score in enumerate(scores) if not math.isnan(score.ap)]
    known.sort(key=lambda index: -scores[index].ap)
    if len(known) <= 2 * _OF_EACH_END:
        return known
    return known[:_OF_EACH_END] + known[-_OF_EACH_END:]


def _print_strata(strata: Sequence[Stratum]) -> None:
    columns = ("annotations", "classes", "with boxes here", "AP", "AP50")
    table = make_table("AP by training annotations of a class", *columns)
    for stratum in strata:
        if stratum.num_classes == 0:
            continue
        counts = str(stratum.num_classes), str(stratum.num_scored)
        table.add_row(stratum.name, *counts, figure(stratum.ap), figure(stratum.ap50))
    console.print(table)


def _print_cut(analysis: Analysis) -> None:
    """What a best cut is, and what is right and wrong there."""
    best = analysis.curves.best
    if math.isnan(best.f1) or best.precision == 0:
        return
    boxes = sum(score.num_boxes for score in analysis.scores.per_class)
    right = round(best.recall * boxes)
    wrong = round(best.recall * boxes / best.precision) - right
    say_prose(
        f"best cut: the score at which F1 is highest, {best.score:.3f} for all classes together. "
        f"Of detections from there on {right} are right and {wrong} wrong; {boxes - right} of "
        f"{boxes} boxes are missed."
    )


def _print_errors(errors: ErrorReport) -> None:
    columns = ("kind", "count", "AP50 it costs")
    table = make_table("errors at IoU 0.5, detections of any score", *columns, left=["kind"])
    for cost in errors.kinds:
        last = cost is errors.kinds[-1]
        table.add_row(cost.kind, str(cost.count), figure(cost.cost), end_section=last)
    for cost in (errors.false_positives, errors.false_negatives):
        table.add_row(f"all {cost.kind}", str(cost.count), figure(cost.cost))
    console.print(table)


def _print_intervals(report: BootstrapReport) -> None:
    for name, interval in (("AP", report.ap), ("AP50", report.ap50)):
        say_prose(
            f"{name} {figure(interval.value)}, 95 % interval {span(interval.low, interval.high)} "
            f"({report.resamples} resamples of {count_of(report.num_images, 'image')})"
        )


def _print_comparison(report: ComparisonReport, classes: Sequence[ClassScore]) -> None:
    """Both runs, their difference, and what the images can tell."""
    first, second, difference = report.first, report.second, report.difference
    apart = [n for n, interval in enumerate(difference.per_class) if interval.excludes_zero]
    apart.sort(key=lambda n: -abs(difference.per_class[n].value))
    shown = apart[:_MOST_DIFFERENCES] if len(classes) > 1 else []
    title = "this against the other, on the same images"
    table = Table(title=title, caption="below the line: AP of classes" if shown else None)
    table.add_column("")
    for name in ("this", "other", "difference", "95 % interval", "share > 0"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("AP", *_compared(first.ap, second.ap, difference.ap))
    cells = _compared(first.ap50, second.ap50, difference.ap50)
    table.add_row("AP50", *cells, end_section=True)
    for n in shown:
        cells = _compared(first.per_class[n], second.per_class[n], difference.per_class[n])
        table.add_row(name_cell(classes[n].name), *cells)
    console.print(table)
    if len(classes) > 1:
        hidden = len(apart) - len(shown)
        left_out = f", {hidden} of them left out here" if hidden else ""
        say_prose(
            f"{_count_classes(len(apart))} of {len(classes)} with an interval without 0{left_out}; "
            "of classes that do not differ, one in twenty has one by chance"
        )
    say_prose(_verdict(report))


def _compared(first: Interval, second: Interval, difference: Interval) -> list[str]:
    low, high = (figure(end, signed=True) for end in (difference.low, difference.high))
    share = difference.share_above_zero
    return [
        figure(first.value),
        figure(second.value),
        figure(difference.value, signed=True),
        f"{low} to {high}",
        "-" if math.isnan(share) else f"{share:.1%}",
    ]


def _verdict(report: ComparisonReport) -> str:
    difference = report.difference
    if difference.num_images < 2:
        return "One image cannot tell the runs apart."
    drawn = f"{difference.resamples} resamples of {count_of(difference.num_images, 'image')}"
    few = (
        f" Intervals of fewer than {_FEW_IMAGES} images are too narrow."
        if difference.num_images < _FEW_IMAGES
        else ""
    )
    if not report.tells_apart:
        return (
            "These images cannot tell the runs apart by AP: the 95 % interval of the difference "
            f"holds 0 ({drawn}).{few}"
        )
    better = "This one is better" if difference.ap.low > 0 else "The other one is better"
    return f"{better} on such images: the 95 % interval of the difference is off 0 ({drawn}).{few}"


def _print_oddities(oddities: Mapping[str, int]) -> None:
    for what, count in oddities.items():
        if count:
            say_prose(f"note: {what}: {count}")


def _count_classes(number: int) -> str:
    return "1 class" if number == 1 else f"{number} classes"

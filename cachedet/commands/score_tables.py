"""What the commands print of scores, for a person at a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from cachedet.commands.tables import console
from cachedet.progress import count_of

if TYPE_CHECKING:  # commands import what they need when they run: `--help` stays quick
    from cachedet.evaluation.analysis import Analysis
    from cachedet.evaluation.error_kinds import ErrorReport
    from cachedet.evaluation.lvis import LvisScores
    from cachedet.evaluation.metrics import ClassScore, CocoScores
    from cachedet.evaluation.precision import ProposalReport
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
    """All that was found out, the most asked for first."""
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
    if analysis.intervals is not None:
        _print_intervals(analysis.intervals)
    if analysis.comparison is not None:
        _print_comparison(analysis.comparison, analysis.scores.per_class)
    _print_oddities(analysis.oddities)


def print_proposals(report: ProposalReport) -> None:
    """Average recall of the RPN's proposals."""
    table = Table(title=f"recall of proposals (the RPN keeps {report.most_per_image} an image)")
    for name in ("proposals", "AR", "small", "medium", "large", "at 0.5", "at 0.75"):
        table.add_column(name, justify="right")
    for at in report.at_limits:
        recalls = (at.ar, at.ar_small, at.ar_medium, at.ar_large, at.recall50, at.recall75)
        table.add_row(str(at.limit), *map(_figure, recalls))
    console.print(table)


def _print_figures(scores: CocoScores, *, of: str) -> None:
    table = Table(title=f"COCO figures of {of}", show_header=False)
    rows = [
        [("AP", scores.ap), ("AP50", scores.ap50), ("AP75", scores.ap75)],
        [("AP small", scores.ap_small), ("medium", scores.ap_medium), ("large", scores.ap_large)],
        [("AR 1", scores.ar1), ("10", scores.ar10), ("100", scores.ar100)],
        [("AR small", scores.ar_small), ("medium", scores.ar_medium), ("large", scores.ar_large)],
    ]
    _add_figures(table, rows)


def _print_lvis(lvis: LvisScores, *, of: str) -> None:
    table = Table(title=f"LVIS v1 figures of {of}", show_header=False)
    rows = [
        [("AP", lvis.ap), ("AP50", lvis.ap50), ("AP75", lvis.ap75)],
        [("AP rare", lvis.ap_rare), ("common", lvis.ap_common), ("frequent", lvis.ap_frequent)],
        [("AP small", lvis.ap_small), ("medium", lvis.ap_medium), ("large", lvis.ap_large)],
        [("AR small", lvis.ar_small), ("medium", lvis.ar_medium), ("large", lvis.ar_large)],
        [("AR 300", lvis.ar300)],
    ]
    _add_figures(table, rows)


def _add_figures(table: Table, rows: Sequence[Sequence[tuple[str, float]]]) -> None:
    for _ in rows[0]:
        table.add_column()
        table.add_column(justify="right")
    for row in rows:
        table.add_row(*(cell for name, value in row for cell in (name, _figure(value))))
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
    table = Table(title=title)
    table.add_column("class")
    columns: dict[str, Sequence[str]] = {
        "boxes": [str(score.num_boxes) for score in scores],
        "AP": [_figure(score.ap) for score in scores],
    }
    if lvis is None:
        columns["AP50"] = [_figure(score.ap50) for score in scores]
    else:  # in its place: more would not fit
        columns["LVIS AP"] = [_figure(ap) for ap in lvis]
    if training_boxes is not None:
        columns["train"] = [str(training_boxes[score.category_id]) for score in scores]
    if intervals is not None:
        columns["95 % of AP"] = [_span(own) for own in intervals]
    if cuts is not None:
        columns["best cut"] = [_figure(cut) for cut in cuts]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    shown = _choose_classes(scores)
    for place in shown:
        cells = [column[place] for column in columns.values()]
        table.add_row(_name(scores[place].name), *cells)
    console.print(table)
    if len(shown) < len(scores):
        without = sum(math.isnan(score.ap) for score in scores)
        console.print(
            f"best and worst by AP; {_count_classes(len(scores) - len(shown))} of {len(scores)} "
            f"left out, {without} of them without boxes here: --json has all",
            highlight=False,
        )


def _choose_classes(scores: Sequence[ClassScore]) -> list[int]:
    """All places, or those of the best AP and of the worst, falling."""
    if len(scores) <= _MOST_CLASSES:
        return list(range(len(scores)))
    known = [place for place, score in enumerate(scores) if not math.isnan(score.ap)]
    known.sort(key=lambda place: -scores[place].ap)
    if len(known) <= 2 * _OF_EACH_END:
        return known
    return known[:_OF_EACH_END] + known[-_OF_EACH_END:]


def _print_strata(strata: Sequence[Stratum]) -> None:
    table = Table(title="AP by training annotations of a class")
    for name in ("annotations", "classes", "with boxes here", "AP", "AP50"):
        table.add_column(name, justify="right")
    for own in strata:
        table.add_row(
            own.name, str(own.num_classes), str(own.num_scored), _figure(own.ap), _figure(own.ap50)
        )
    console.print(table)


def _print_errors(errors: ErrorReport) -> None:
    table = Table(title="kinds of errors at IoU 0.5")
    table.add_column("kind")
    table.add_column("count", justify="right")
    table.add_column("AP50 it costs", justify="right")
    for cost in errors.kinds:
        last = cost is errors.kinds[-1]
        table.add_row(cost.kind, str(cost.count), _figure(cost.cost), end_section=last)
    for cost in (errors.false_positives, errors.false_negatives):
        table.add_row(f"all {cost.kind}", str(cost.count), _figure(cost.cost))
    console.print(table)


def _print_intervals(report: BootstrapReport) -> None:
    for name, own in (("AP", report.ap), ("AP50", report.ap50)):
        console.print(
            f"{name} {_figure(own.value)}, 95 % interval {_span(own)} "
            f"({report.resamples} resamples of {count_of(report.num_images, 'image')})",
            highlight=False,
        )


def _print_comparison(report: ComparisonReport, classes: Sequence[ClassScore]) -> None:
    """Both runs, their difference, and what the images can tell."""
    difference = report.difference
    places = [n for n, own in enumerate(difference.per_class) if own.excludes_zero]
    places.sort(key=lambda n: -abs(difference.per_class[n].value))
    shown = places[:_MOST_DIFFERENCES] if len(classes) > 1 else []
    title = "this against the other, on the same images"
    table = Table(title=title, caption="below the line: AP of classes" if shown else None)
    table.add_column("")
    for name in ("this", "other", "difference", "95 % interval", "share > 0"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = [
        ("AP", report.first.ap, report.second.ap, difference.ap),
        ("AP50", report.first.ap50, report.second.ap50, difference.ap50),
    ]
    rows += [
        (
            classes[n].name,
            report.first.per_class[n],
            report.second.per_class[n],
            difference.per_class[n],
        )
        for n in shown
    ]
    for place, (name, first, second, apart) in enumerate(rows):
        table.add_row(
            _name(name),
            _figure(first.value),
            _figure(second.value),
            _signed(apart.value),
            f"{_signed(apart.low)} to {_signed(apart.high)}",
            "-" if math.isnan(apart.share_above_zero) else f"{apart.share_above_zero:.1%}",
            end_section=place == 1,
        )
    console.print(table)
    for line in (*_class_notes(len(places), len(shown), len(classes)), _verdict(report)):
        console.print(line, highlight=False, markup=False)


def _class_notes(found: int, shown: int, classes: int) -> list[str]:
    if classes < 2:
        return []
    left_out = f", {found - shown} of them left out here" if shown < found else ""
    return [
        f"{_count_classes(found)} of {classes} with an interval without 0{left_out}; of classes "
        "that do not differ, one in twenty has one by chance"
    ]


def _verdict(report: ComparisonReport) -> str:
    apart = report.difference.ap
    drawn = (
        f"{report.difference.resamples} resamples of "
        f"{count_of(report.difference.num_images, 'image')}"
    )
    if report.difference.num_images < 2:
        return "One image cannot tell the runs apart."
    few = (
        f" Intervals of fewer than {_FEW_IMAGES} images are too narrow."
        if report.difference.num_images < _FEW_IMAGES
        else ""
    )
    if not report.tells_apart:
        return (
            "These images cannot tell the runs apart by AP: the 95 % interval of the difference "
            f"holds 0 ({drawn}).{few}"
        )
    better = "This one is better" if apart.low > 0 else "The other one is better"
    return f"{better} on such images: the 95 % interval of the difference is off 0 ({drawn}).{few}"


def _print_oddities(oddities: Mapping[str, int]) -> None:
    for what, count in oddities.items():
        if count:
            console.print(f"note: {what}: {count}", highlight=False)


def _count_classes(number: int) -> str:
    return "1 class" if number == 1 else f"{number} classes"


def _name(name: str) -> Text:
    """Brackets of names are no markup; what does not fit beside the figures is cut."""
    return Text(" ".join(name.split()), no_wrap=True, overflow="ellipsis")


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.3f}"


def _span(own: Interval) -> str:
    return f"{_figure(own.low)}-{_figure(own.high)}" if not math.isnan(own.low) else "-"

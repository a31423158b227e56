"""The page of a comparison: does freezing the backbone work on this data, on this machine?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date

from cachedet.comparison.page_charts import (
    CurveOf,
    cost_charts,
    describe_race,
    difference_charts,
    is_one_sided,
    time_charts,
)
from cachedet.comparison.page_tables import (
    JUDGEMENTS,
    runs_section,
    summary_table,
    tone_against,
    verdict_tables,
)
from cachedet.comparison.results import CellResult
from cachedet.comparison.summary import (
    Group,
    Summary,
    bin_spreads,
    class_differences,
    compare_groups,
    summarise,
)
from cachedet.comparison.verdicts import (
    MODE_NAMES,
    describe_agreement,
    describe_best,
    describe_failed,
    describe_freezing,
)
from cachedet.reporting.content import (
    ABSENT,
    Cell,
    Fold,
    Headline,
    Report,
    Row,
    Section,
    Table,
    count_classes,
    figure,
    signed,
)
from cachedet.version import __version__

__all__ = ["CurveOf", "comparison_page"]

_PAPER_PARAMETERS = (
    "The paper (arXiv 2204.00484, tables 1 and 3: COCO, ResNet-101, ImageNet weights, its long "
    "schedule, AP of 0 to 100): with an FPN, frozen 42.1 and fine-tuned 48.6, training 21.9 M of "
    "83.5 M parameters; with a NAS-FPN 49.1 and 49.0, 40.9 M of 102.6 M; with a NAS-FPN and "
    "cascade heads 51.8 and 51.1, 71.3 M of 132.9 M. From scratch: 48.4, 47.2 and 50.4."
)
_PAPER_CLASSES = (
    "The paper (tables 5 and 6: LVIS, EfficientNet-B7 with a NAS-FPN and Copy-Paste, box AP of 0 "
    "to 100): rare classes 19.3 fine-tuned and 22.2 frozen, common ones 37.3 and 38.8, frequent "
    "ones 48.2 and 48.3. The fewer annotations a class has, the more freezing helped. "
    "Again another scale: a larger network, and 1,203 classes."
)
_OTHER_SCALE = (
    "That is another scale: up to 1280 pixels, networks of 80 to 130 M parameters, 118,000 "
    "images of 80 classes. Its directions may carry over, its sizes do not."
)


def comparison_page(
    cells: Sequence[CellResult],
    *,
    title: str,
    standfirst: str,
    facts: Sequence[tuple[str, str]],
    curves: Sequence[CurveOf],
) -> Report:
    """Everything about the runs of a comparison, failed ones included.

    Args:
        cells: one a run.
        title, standfirst: above the page.
        facts: what was the same for all runs and what was not, name and text.
        curves: validation AP over time, of those runs that have it.
    """
    summary = summarise(cells)
    return Report(
        title=title,
        standfirst=standfirst,
        headlines=_headlines(summary),
        sections=(
            _result_section(summary),
            _parameter_section(summary),
            _class_section(summary),
            _bin_section(summary),
            _time_section(curves),
            _agreement_section(summary),
            runs_section(cells),
        ),
        last=(_facts_section(facts),),
        version=__version__,
        written=date.today().isoformat(),
        kind="comparison",
        has_images=False,
    )


def _headlines(summary: Summary) -> tuple[Headline, ...]:
    """The best heads of each mode."""
    best = [own for mode in summary.modes if (own := summary.best_of((mode,))) is not None]
    ends = [_ends(own) for own in best]
    known = [end for pair in ends for end in pair if not math.isnan(end)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    room = max(high - low, 0.01) / 4
    low, high = low - room, high + room
    found = []
    for own, (least, most) in zip(best, ends, strict=True):
        track = [(end - low) / (high - low) for end in (least, own.ap.mean, most)]
        over = own.ap.count > 1
        found.append(
            Headline(
                run=f"{MODE_NAMES[own.mode]}, {own.heads}",
                value=figure(own.ap.mean),
                interval=ABSENT if math.isnan(least) else f"{least:.3f}–{most:.3f}",
                interval_name=f"{own.ap.count} seeds" if over else "one seed, 95 % interval",
                verdict=_headline_verdict(summary, own),
                tone=tone_against(summary, own),
                track=None if math.isnan(least) else (track[0], track[1], track[2]),
            )
        )
    return tuple(found)


def _headline_verdict(summary: Summary, own: Group) -> str:
    best = "best mean AP of all" if own is summary.best else ""
    tuned = summary.find(own.heads, "tuned")
    if tuned is None or own.mode == "tuned":
        return best
    found = compare_groups(own, tuned)
    told = f"{signed(found.difference.mean)} against fine-tuned: {JUDGEMENTS[found.judgement]}"
    return f"{best}; {told}" if best else told


def _ends(group: Group) -> tuple[float, float]:
    """Least and most of the seeds; of one seed the interval over the images."""
    if group.ap.count > 1:
        return group.ap.least, group.ap.most
    cell = next(own for own in group.cells if not math.isnan(own.ap))
    return cell.low, cell.high


def _result_section(summary: Summary) -> Section:
    failed = describe_failed(summary.failed)
    return Section(
        key="result",
        title="Does freezing work here?",
        short="Result",
        leads=(*describe_best(summary), *describe_freezing(summary)),
        tables=(*verdict_tables(summary), summary_table(summary)),
        notes=(
            "A difference is beyond the spread where the means lie farther apart than the runs of "
            "either mode do: only then is there a verdict. The best of many is a little too good: "
            "it was picked for its figure.",
            *((failed,) if failed else ()),
        ),
    )


def _parameter_section(summary: Summary) -> Section:
    charts = cost_charts(summary)
    return Section(
        key="costs",
        title="AP against what it costs",
        short="Costs",
        leads=(
            ("The paper’s point is that a frozen backbone needs heads that are strong enough: "
             "where they are, freezing costs nothing or gains.",)
            if charts
            else ("No run was scored.",)
        ),
        charts=charts,
        notes=(_PAPER_PARAMETERS, _OTHER_SCALE),
    )  # fmt: skip


def _class_section(summary: Summary) -> Section:
    charts = difference_charts(summary)
    return Section(
        key="classes",
        title="Class by class: cached minus fine-tuned",
        short="Classes",
        leads=(_class_lead(summary, bool(charts)),),
        charts=charts,
        folds=_class_folds(summary),
        notes=(_PAPER_CLASSES,),
    )


def _class_lead(summary: Summary, is_drawn: bool) -> str:
    names = {own.name for heads in summary.heads for own in class_differences(summary, heads)}
    if not names:
        return "Not here: that takes runs of the modes cached and tuned with a seed in common."
    if is_drawn:
        return (
            "A point is a class: above the line, freezing helped it. Bars reach from the least to "
            "the most of the seeds."
        )
    return (
        f"{count_classes(len(names))} with boxes to learn from and to score: there is no trend to "
        "draw. The difference stands in the table."
    )


def _class_folds(summary: Summary) -> tuple[Fold, ...]:
    found = {
        heads: {own.name: own for own in differences}
        for heads in summary.heads
        if (differences := class_differences(summary, heads))
    }
    if not found:
        return ()
    boxes = {name: own.boxes for by_name in found.values() for name, own in by_name.items()}
    rows = []
    for name in sorted(boxes, key=lambda name: boxes[name]):
        cells = [Cell(text=f"{boxes[name]:,}", rank=boxes[name])]
        for by_name in found.values():
            own = by_name.get(name)
            if own is None or not own.difference.count:
                cells.append(Cell(text=ABSENT))
                continue
            apart = own.difference
            sure = is_one_sided(apart)
            note = f"{signed(apart.least)} to {signed(apart.most)}" if apart.count > 1 else ""
            cells.append(
                Cell(
                    text=signed(apart.mean),
                    note=note,
                    tone=("better" if apart.mean > 0 else "worse") if sure else "",
                    rank=apart.mean,
                )
            )
        rows.append(Row(name=name, cells=tuple(cells)))
    table = Table(
        caption="Mean over the seeds of cached minus fine-tuned, with the least and the most of "
        "them. Coloured where all seeds are on the same side; of many classes, some are by chance.",
        corner="Class",
        columns=("training boxes", *found),
        rows=tuple(rows),
        sortable=True,
        dense=True,
    )
    return (Fold(title="Classes in figures", table=table, is_open=len(rows) <= 8),)


def _bin_section(summary: Summary) -> Section:
    rows: list[Row] = []
    for heads in summary.heads:
        by_mode = {mode: summary.find(heads, mode) for mode in summary.modes}
        found = {mode: bin_spreads(own) if own else () for mode, own in by_mode.items()}
        names = {o.name: o.classes for bins in found.values() for o in bins if o.classes}
        if names:
            rows.append(Row(name=heads, cells=(), group=True))
        for name, classes in names.items():
            cells = tuple(
                next((_bin_cell(o.ap.mean, o.ap.least, o.ap.most, o.ap.count)
                      for o in found[mode] if o.name == name), Cell(text=ABSENT))
                for mode in summary.modes
            )  # fmt: skip
            rows.append(Row(name=f"{name} boxes", note=count_classes(classes), cells=cells))
    if not rows:
        return Section(
            key="bins",
            title="By number of training boxes",
            short="Boxes",
            leads=("No run has its classes in bins of training boxes.",),
        )
    table = Table(
        caption="Mean AP of the classes of each bin, and its least and most over the seeds. A "
        "dash: no such class has boxes in the scored images.",
        corner="Training boxes of a class",
        columns=tuple(MODE_NAMES[mode] for mode in summary.modes),
        rows=tuple(rows),
    )
    return Section(key="bins", title="By number of training boxes", short="Boxes", tables=(table,))


def _bin_cell(mean: float, least: float, most: float, count: int) -> Cell:
    return Cell(text=figure(mean), note=f"{least:.3f}–{most:.3f}" if count > 1 else "")


def _time_section(curves: Sequence[CurveOf]) -> Section:
    charts = time_charts(curves)
    return Section(
        key="time",
        title="Who is ahead when",
        short="Time",
        leads=describe_race(curves) if charts else ("No run recorded a validation.",),
        charts=charts,
        notes=(
            "The lines of cached begin after the extraction of the cache, which is paid once for "
            "all heads and seeds.",
        )
        if any(own.key.mode == "cached" for own in curves)
        else (),
    )


def _agreement_section(summary: Summary) -> Section:
    pairs = summary.compare("cached", "live")
    return Section(
        key="agreement",
        title="Do cached and live agree?",
        short="Cached and live",
        leads=describe_agreement(summary),
        notes=(
            "Both train the same heads on the features of the same frozen backbone. Over equal "
            "epochs, and without jitter (live draws it anew every epoch), they should differ by no "
            "more than seeds do.",
        )
        if pairs
        else (),
    )


def _facts_section(facts: Sequence[tuple[str, str]]) -> Section:
    table = Table(
        caption="What was the same for all runs, and what was not.",
        corner="Fact",
        columns=("In these runs",),
        rows=tuple(Row(name=name, cells=(Cell(text=text),)) for name, text in facts),
        numeric=False,
    )
    return Section(
        key="conditions",
        title="Conditions",
        short="Conditions",
        leads=() if facts else ("None were recorded.",),
        tables=(table,) if facts else (),
    )

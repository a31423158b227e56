"""The page of a comparison: does freezing the backbone work on this data, on this machine?"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from cachedet.comparison import page_charts, page_tables, verdicts
from cachedet.comparison.cautions import Caution
from cachedet.comparison.page_charts import CurveOf
from cachedet.comparison.results import CellResult
from cachedet.comparison.summary import (
    BinSpread,
    ClassDifference,
    Group,
    Summary,
    bin_spreads,
    class_differences,
    compare_groups,
    summarise,
)
from cachedet.live.mode_names import mode_label
from cachedet.reporting.content import (
    Cell,
    Fold,
    Headline,
    Report,
    Row,
    Section,
    Table,
    Tone,
    facts_section,
)
from cachedet.reporting.figures import ABSENT, count_classes, figure, signed, span, tracks_of
from cachedet.version import __version__

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
    cautions: Sequence[Caution] = (),
) -> Report:
    """Everything about the runs of a comparison, failed ones included.

    `facts` are names and texts of what was the same for all runs and what was not.
    """
    summary = summarise(cells)
    return Report(
        title=title,
        standfirst=standfirst,
        headlines=_headlines(summary),
        sections=(
            _result_section(summary, cautions),
            _cost_section(summary),
            _class_section(summary),
            _bin_section(summary),
            _time_section(curves),
            _agreement_section(summary),
            page_tables.runs_section(cells),
        ),
        last=(_facts_section(facts),),
        version=__version__,
        written=date.today().isoformat(),
        kind="comparison",
        has_images=False,
    )


def _headlines(summary: Summary) -> tuple[Headline, ...]:
    """The best heads of each mode."""
    best = [group for mode in summary.modes if (group := summary.best_of((mode,))) is not None]
    tracks = tracks_of([(group.ends[0], group.ap.mean, group.ends[1]) for group in best])
    headlines = []
    for group, track in zip(best, tracks, strict=True):
        seeds = group.ap.count
        verdict, tone = _headline_verdict(summary, group)
        headlines.append(
            Headline(
                run=f"{mode_label(group.mode)}, {group.heads}",
                value=figure(group.ap.mean),
                interval=span(*group.ends),
                interval_name=f"{seeds} seeds" if seeds > 1 else "one seed, 95 % interval",
                verdict=verdict,
                tone=tone,
                track=track,
            )
        )
    return tuple(headlines)


def _headline_verdict(summary: Summary, group: Group) -> tuple[str, Tone]:
    best = "best mean AP of all" if group is summary.best_of() else ""
    tuned = summary.find(group.heads, "tuned")
    if tuned is None or group.mode == "tuned":
        return best, ""
    comparison = compare_groups(group, tuned)
    judgement = page_tables.JUDGEMENTS[comparison.judgement]
    against = f"{signed(comparison.difference.mean)} against fine-tuned: {judgement}"
    return "; ".join(filter(None, (best, against))), page_tables.tone_of(comparison)


def _result_section(summary: Summary, cautions: Sequence[Caution]) -> Section:
    failed = verdicts.describe_failed(summary.failed)
    return Section(
        key="result",
        title="Does freezing work here?",
        short="Result",
        leads=(
            *(caution.text for caution in cautions),
            *verdicts.describe_best(summary),
            *verdicts.describe_freezing(summary),
            *verdicts.describe_partial(summary),
        ),
        tables=(*page_tables.verdict_tables(summary), page_tables.summary_table(summary)),
        notes=(
            "A difference is beyond the spread where the means lie farther apart than the runs of "
            "either mode do: only then is there a verdict. The best of many is a little too good: "
            "it was picked for its figure.",
            *((failed,) if failed else ()),
        ),
    )


def _cost_section(summary: Summary) -> Section:
    charts = page_charts.cost_charts(summary)
    lead = (
        "The paper’s point is that a frozen backbone needs heads that are strong enough: where "
        "they are, freezing costs nothing or gains."
    )
    return Section(
        key="costs",
        title="AP against what it costs",
        short="Costs",
        leads=(lead if charts else "No run was scored.",),
        charts=charts,
        notes=(_PAPER_PARAMETERS, _OTHER_SCALE),
    )


def _class_section(summary: Summary) -> Section:
    charts = page_charts.difference_charts(summary)
    by_heads = {
        heads: {each.name: each for each in differences}
        for heads in summary.heads
        if (differences := class_differences(summary, heads))
    }
    boxes = {name: each.boxes for by_name in by_heads.values() for name, each in by_name.items()}
    if not boxes:
        lead = "Not here: that takes runs of the modes cached and tuned with a seed in common."
    elif charts:
        lead = (
            "A point is a class: above the line, freezing helped it. Bars reach from the least to "
            "the most of the seeds."
        )
    else:
        lead = (
            f"{count_classes(len(boxes))} with boxes to learn from and to score: there is no trend "
            "to draw. The difference stands in the table."
        )
    return Section(
        key="classes",
        title="Class by class: cached minus fine-tuned",
        short="Classes",
        leads=(lead,),
        charts=charts,
        folds=(_class_fold(by_heads, boxes),) if by_heads else (),
        notes=(_PAPER_CLASSES,),
    )


def _class_fold(by_heads: dict[str, dict[str, ClassDifference]], boxes: dict[str, int]) -> Fold:
    rows = [
        Row(
            name=name,
            cells=(
                Cell(text=f"{boxes[name]:,}", rank=boxes[name]),
                *(_class_cell(by_name.get(name)) for by_name in by_heads.values()),
            ),
        )
        for name in sorted(boxes, key=lambda name: boxes[name])
    ]
    table = Table(
        caption="Mean over the seeds of cached minus fine-tuned, with the least and the most of "
        "them. Coloured where all seeds are on the same side; of many classes, some are by chance.",
        corner="Class",
        columns=("training boxes", *by_heads),
        rows=tuple(rows),
        sortable=True,
        dense=True,
    )
    return Fold(title="Classes in figures", table=table, is_open=len(rows) <= 8)


def _class_cell(of_class: ClassDifference | None) -> Cell:
    if of_class is None or not of_class.difference.count:
        return Cell(text=ABSENT)
    difference = of_class.difference
    tone: Tone = "better" if difference.mean > 0 else "worse"
    return Cell(
        text=signed(difference.mean),
        note=page_tables.spread_note(difference),
        tone=tone if page_charts.is_one_sided(difference) else "",
        rank=difference.mean,
    )


def _bin_section(summary: Summary) -> Section:
    rows: list[Row] = []
    for heads in summary.heads:
        groups = [summary.find(heads, mode) for mode in summary.modes]
        by_mode = [{b.name: b for b in bin_spreads(group)} if group else {} for group in groups]
        classes = {b.name: b.classes for bins in by_mode for b in bins.values() if b.classes}
        if classes:
            rows.append(Row(name=heads, cells=(), group=True))
        rows += [
            Row(
                name=f"{name} boxes",
                note=count_classes(number),
                cells=tuple(_bin_cell(bins.get(name)) for bins in by_mode),
            )
            for name, number in classes.items()
        ]
    table = Table(
        caption="Mean AP of the classes of each bin, and its least and most over the seeds. A "
        "dash: no such class has boxes in the scored images.",
        corner="Training boxes of a class",
        columns=tuple(mode_label(mode) for mode in summary.modes),
        rows=tuple(rows),
    )
    return Section(
        key="bins",
        title="By number of training boxes",
        short="Boxes",
        leads=() if rows else ("No run has its classes in bins of training boxes.",),
        tables=(table,) if rows else (),
    )


def _bin_cell(of_bin: BinSpread | None) -> Cell:
    if of_bin is None:
        return Cell(text=ABSENT)
    ap = of_bin.ap
    return Cell(text=figure(ap.mean), note=span(ap.least, ap.most) if ap.count > 1 else "")


def _time_section(curves: Sequence[CurveOf]) -> Section:
    charts = page_charts.time_charts(curves)
    note = (
        "The lines of cached begin after the extraction of the cache, which is paid once for all "
        "heads and seeds."
    )
    return Section(
        key="time",
        title="Who is ahead when",
        short="Time",
        leads=page_charts.describe_race(curves) if charts else ("No run recorded a validation.",),
        charts=charts,
        notes=(note,) if any(curve.key.mode == "cached" for curve in curves) else (),
    )


def _agreement_section(summary: Summary) -> Section:
    note = (
        "Both train the same heads on the features of the same frozen backbone. Over equal epochs, "
        "and without jitter and colour (live draws them anew every epoch), they should differ by "
        "no more than seeds do."
    )
    return Section(
        key="agreement",
        title="Do cached and live agree?",
        short="Cached and live",
        leads=verdicts.describe_agreement(summary),
        notes=(note,) if summary.compare("cached", "live") else (),
    )


def _facts_section(facts: Sequence[tuple[str, str]]) -> Section:
    caption = "What was the same for all runs, and what was not."
    return facts_section(facts, caption=caption, column="In these runs")

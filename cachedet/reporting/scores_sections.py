"""The result: figures of runs side by side, and how surely they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cachedet.evaluation.significance import BootstrapReport, Interval
from cachedet.reporting.content import Cell, Headline, Row, Section, Table, Tone
from cachedet.reporting.figures import (
    UNDECIDED,
    count,
    count_classes,
    figure,
    rank_of,
    signed,
    signed_span,
    span,
    tracks_of,
    verdict,
)
from cachedet.reporting.run_analysis import RunAnalysis
from cachedet.structures import Annotations

FEWEST_IMAGES = 10  # that hold a class, for a verdict on it
_SIZES = {
    "small": "small, below 32² pixels",
    "medium": "medium, 32² to 96² pixels",
    "large": "large, above 96² pixels",
}


def make_headlines(runs: Sequence[RunAnalysis]) -> tuple[Headline, ...]:
    """AP of each run with its interval and how it stands against the first."""
    intervals = [run.intervals.ap for run in runs]
    tracks = tracks_of(
        [(interval.low, interval.value, interval.high) for interval in intervals],
        scale=(0.0, 1.0) if len(runs) == 1 else None,
    )
    return tuple(
        Headline(
            run=run.name,
            value=figure(run.scores.ap),
            interval=span(interval.low, interval.high),
            verdict="" if run.difference is None else _against(run.difference.ap, runs[0].name),
            tone="" if run.difference is None else tone_of(run.difference.ap),
            track=track,
        )
        for run, interval, track in zip(runs, intervals, tracks, strict=True)
    )


def result_section(
    runs: Sequence[RunAnalysis],
    *,
    resamples: int,
    recorded: Sequence[Row] = (),
    oddities: Sequence[str] = (),
) -> Section:
    """The figures of COCO, runs side by side, then the lines of what eval recorded beside them."""
    rows = [
        Row(name="Boxes of all sizes", cells=(), group=True),
        _figures("AP", runs, "ap", has_interval=True),
        *_differences("AP, against the first run", runs, "ap"),
        _figures("AP50", runs, "ap50", has_interval=True),
        *_differences("AP50, against the first run", runs, "ap50"),
        _figures("AP75", runs, "ap75"),
        Row(name="AP by size of object", cells=(), group=True),
        *(_figures(text, runs, f"ap_{size}") for size, text in _SIZES.items()),
        Row(name="Average recall", cells=(), group=True),
        *(_figures(f"best {n} a class", runs, f"ar{n}") for n in (1, 10, 100)),
        *(_figures(text, runs, f"ar_{size}") for size, text in _SIZES.items()),
    ]
    if any(run.analysis.mask_scores is not None for run in runs):
        rows.append(Row(name="Masks", cells=(), group=True))
        rows += [
            _figures(f"{name} of masks", runs, name.lower(), of_masks=True)
            for name in ("AP", "AP50", "AP75")
        ]
    images = count(runs[0].scores.num_images)
    paired = (
        "Differences are those of the same resamples, so they are surer than the intervals of the "
        "runs suggest."
    )
    table = Table(
        caption="COCO's figures, 0 to 1. Where a second line stands, it is the interval that holds "
        "95 % of the resamples.",
        corner="Figure",
        columns=tuple(run.name for run in runs),
        rows=(*rows, *recorded),
    )
    return Section(
        key="result",
        title="How good it is",
        short="Result",
        leads=_leads(runs),
        tables=(table,),
        notes=(
            f"Intervals: {count(resamples)} resamples of the {images} images. They cover the "
            "choice of images, not the seed of training, which moves AP too.",
            *((paired,) if len(runs) > 1 else ()),
            *oddities,
        ),
    )


def tone_of(difference: Interval) -> Tone:
    """Better or worse only where the interval leaves 0 out."""
    tones: dict[str, Tone] = {"better": "better", "worse": "worse"}
    return tones.get(verdict(difference), "")


def difference_cell(difference: Interval, *, num_images: int | None = None) -> Cell:
    """A gain with its interval; the verdict stands there in words too.

    Resamples of a few images are so alike that their interval says nothing: with fewer than
    `FEWEST_IMAGES` there is no verdict.
    """
    word = verdict(difference)
    if word == UNDECIDED:
        word = "cannot tell"
    has_few = num_images is not None and num_images < FEWEST_IMAGES
    if has_few:
        word = "too few images"
    interval = signed_span(difference.low, difference.high)
    return Cell(
        text=signed(difference.value),
        note="" if math.isnan(difference.low) else f"{interval}, {word}",
        tone="" if has_few else tone_of(difference),
        rank=rank_of(difference.value),
    )


def of_run(what: str, run: RunAnalysis, runs: Sequence[RunAnalysis]) -> str:
    """The head of a run's column; without the run where there is only one."""
    return what if len(runs) == 1 else f"{run.name}: {what}"


def describe_annotations(annotations: Annotations) -> str:
    """What was scored, in a phrase."""
    crowds = int(annotations.crowd.sum())
    without = f" ({count(crowds)} of them crowds)" if crowds else ""
    return (
        f"{count(len(annotations))} images, {count(len(annotations.boxes))} boxes{without}, "
        f"{count_classes(len(annotations.categories))}"
    )


def _leads(runs: Sequence[RunAnalysis]) -> tuple[str, ...]:
    first, ap = runs[0].name, runs[0].intervals.ap
    if math.isnan(ap.value):
        return ("The scored images hold no boxes, so AP is not defined.",)
    leads = [
        f"{first} reaches AP {figure(ap.value)}. In 95 of 100 draws of other images of the "
        f"same kind it would lie between {figure(ap.low)} and {figure(ap.high)}."
    ]
    for run in runs[1:]:
        assert run.difference is not None
        gain = run.difference.ap
        judged = verdict(gain)
        conclusion = (
            f"the interval holds 0, so {UNDECIDED}"
            if judged == UNDECIDED
            else f"so it is {judged} on images like these"
        )
        leads.append(
            f"{run.name} differs from {first} by {signed(gain.value)} AP "
            f"({signed_span(gain.low, gain.high)}): {conclusion}."
        )
    return tuple(leads)


def _against(difference: Interval, first: str) -> str:
    judged = verdict(difference)
    if judged == UNDECIDED:
        return f"{signed(difference.value)} against {first}: {judged}"
    interval = signed_span(difference.low, difference.high)
    return f"{judged} than {first}: {signed(difference.value)} ({interval})"


def _figures(
    name: str,
    runs: Sequence[RunAnalysis],
    field: str,
    *,
    has_interval: bool = False,
    of_masks: bool = False,
) -> Row:
    """A figure of `CocoScores`, with the interval of its name in `BootstrapReport` below it."""
    cells = []
    for run in runs:
        scores = run.analysis.mask_scores if of_masks else run.scores
        note = ""
        if has_interval:
            ends = _interval_of(run.intervals, field)
            note = span(ends.low, ends.high)
        cells.append(Cell(text=figure(getattr(scores, field, None)), note=note))
    return Row(name=name, cells=tuple(cells))


def _differences(name: str, runs: Sequence[RunAnalysis], field: str) -> tuple[Row, ...]:
    """Differences to the first run; none for one run alone."""
    if len(runs) < 2:
        return ()
    cells = tuple(
        Cell(text="first run", tone="faint")
        if run.difference is None
        else difference_cell(_interval_of(run.difference, field))
        for run in runs
    )
    return (Row(name=name, cells=cells),)


def _interval_of(report: BootstrapReport, field: str) -> Interval:
    interval: Interval = getattr(report, field)
    return interval

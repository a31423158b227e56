"""The result: figures of runs side by side, and how surely they differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from cachedet.evaluation.metrics import CocoScores
from cachedet.evaluation.significance import Interval
from cachedet.reporting.content import (
    UNDECIDED,
    Cell,
    Headline,
    Row,
    Section,
    Table,
    Tone,
    count,
    count_classes,
    figure,
    signed,
    signed_span,
    span,
    verdict,
)
from cachedet.reporting.run_analysis import RunAnalysis
from cachedet.structures import Annotations

FEWEST_IMAGES = 10  # that hold a class, for a verdict on it
_SIZES = (
    ("small", "small, below 32² pixels"),
    ("medium", "medium, 32² to 96² pixels"),
    ("large", "large, above 96² pixels"),
)


def make_headlines(names: Sequence[str], analyses: Sequence[RunAnalysis]) -> tuple[Headline, ...]:
    """AP of each run with its interval and how it stands against the first."""
    found = []
    scale = _common_scale([own.intervals.ap for own in analyses])
    for name, own in zip(names, analyses, strict=True):
        judged = "" if own.difference is None else _against(own.difference.ap, names[0])
        tone = "" if own.difference is None else tone_of(own.difference.ap)
        found.append(
            Headline(
                run=name,
                value=figure(own.scores.ap),
                interval=span(own.intervals.ap),
                verdict=judged,
                tone=tone,
                track=_on_scale(own.intervals.ap, scale),
            )
        )
    return tuple(found)


def result_section(
    names: Sequence[str],
    analyses: Sequence[RunAnalysis],
    *,
    resamples: int,
    recorded: Sequence[Row] = (),
    oddities: Sequence[str] = (),
) -> Section:
    """The figures of COCO, runs side by side, then the lines of what eval recorded beside them."""
    first = analyses[0]
    rows = [
        Row(name="Boxes of all sizes", cells=(), group=True),
        _figures("AP", analyses, lambda own: own.scores.ap, lambda own: own.intervals.ap),
        *_differences(analyses, "AP, against the first run", lambda own: own.ap),
        _figures("AP50", analyses, lambda own: own.scores.ap50, lambda own: own.intervals.ap50),
        *_differences(analyses, "AP50, against the first run", lambda own: own.ap50),
        _figures("AP75", analyses, lambda own: own.scores.ap75),
        Row(name="AP by size of object", cells=(), group=True),
        *(_figures(text, analyses, _reads(f"ap_{size}")) for size, text in _SIZES),
        Row(name="Average recall", cells=(), group=True),
        *(_figures(f"best {n} a class", analyses, _reads(f"ar{n}")) for n in (1, 10, 100)),
        *(_figures(text, analyses, _reads(f"ar_{size}")) for size, text in _SIZES),
    ]
    if any(own.mask_scores is not None for own in analyses):
        rows += [
            Row(name="Masks", cells=(), group=True),
            *(
                _figures(f"{name} of masks", analyses, _reads_mask(field))
                for name, field in (("AP", "ap"), ("AP50", "ap50"), ("AP75", "ap75"))
            ),
        ]
    return Section(
        key="result",
        title="How good it is",
        short="Result",
        leads=_leads(names, analyses),
        tables=(
            Table(
                caption="COCO's figures, 0 to 1. Where a second line stands, it is the interval "
                "that holds 95 % of the resamples.",
                corner="Figure",
                columns=tuple(names),
                rows=(*rows, *recorded),
            ),
        ),
        notes=(
            f"Intervals: {count(resamples)} resamples of the {count(first.scores.num_images)} "
            "images. They cover the choice of images, not the seed of training, which moves AP "
            "too.",
            *(
                ("Differences are those of the same resamples, so they are surer than the "
                 "intervals of the runs suggest.",)
                if len(names) > 1
                else ()
            ),
            *oddities,
        ),
    )  # fmt: skip


def tone_of(difference: Interval) -> Tone:
    """Better or worse only where the interval leaves 0 out."""
    judged = verdict(difference)
    return "better" if judged == "better" else "worse" if judged == "worse" else ""


def _common_scale(intervals: Sequence[Interval]) -> tuple[float, float]:
    """0..1 for one run; for several what their intervals span, with some room."""
    known = [own for own in intervals if not math.isnan(own.low)]
    if len(known) < 2:
        return 0.0, 1.0
    low, high = min(own.low for own in known), max(own.high for own in known)
    room = max(high - low, 0.01) / 4
    return low - room, high + room


def _on_scale(interval: Interval, scale: tuple[float, float]) -> tuple[float, float, float] | None:
    if math.isnan(interval.low):
        return None
    low, value, high = (
        (own - scale[0]) / (scale[1] - scale[0])
        for own in (interval.low, interval.value, interval.high)
    )
    return low, value, high


def _leads(names: Sequence[str], analyses: Sequence[RunAnalysis]) -> tuple[str, ...]:
    first = analyses[0]
    ap = first.intervals.ap
    if math.isnan(ap.value):
        return ("The scored images hold no boxes, so AP is not defined.",)
    leads = [
        f"{names[0]} reaches AP {figure(ap.value)}. In 95 of 100 draws of other images of the "
        f"same kind it would lie between {figure(ap.low)} and {figure(ap.high)}."
    ]
    for name, own in list(zip(names, analyses, strict=True))[1:]:
        assert own.difference is not None
        gain = own.difference.ap
        judged = verdict(gain)
        said = (
            f"the interval holds 0, so {UNDECIDED}"
            if judged == UNDECIDED
            else f"so it is {judged} on images like these"
        )
        leads.append(
            f"{name} differs from {names[0]} by {signed(gain.value)} AP "
            f"({signed_span(gain)}): {said}."
        )
    return tuple(leads)


def _against(difference: Interval, first: str) -> str:
    judged = verdict(difference)
    if judged == UNDECIDED:
        return f"{signed(difference.value)} against {first}: {judged}"
    return f"{judged} than {first}: {signed(difference.value)} ({signed_span(difference)})"


def _figures(
    name: str,
    analyses: Sequence[RunAnalysis],
    value: Callable[[RunAnalysis], float],
    interval: Callable[[RunAnalysis], Interval] | None = None,
) -> Row:
    return Row(
        name=name,
        cells=tuple(
            Cell(text=figure(value(own)), note=span(interval(own)) if interval else "")
            for own in analyses
        ),
    )


def _differences(
    analyses: Sequence[RunAnalysis], name: str, pick: Callable[..., Interval]
) -> tuple[Row, ...]:
    """None for one run alone."""
    if len(analyses) < 2:
        return ()
    return (
        Row(
            name=name,
            cells=tuple(
                Cell(text="first run", tone="faint")
                if own.difference is None
                else difference_cell(pick(own.difference))
                for own in analyses
            ),
        ),
    )


def difference_cell(difference: Interval, *, num_images: int | None = None) -> Cell:
    """A gain with its interval; the verdict is told in words too.

    Resamples of a few images are so alike that their interval says nothing: with fewer than
    `FEWEST_IMAGES` there is no verdict.
    """
    judged = verdict(difference)
    word = "cannot tell" if judged == UNDECIDED else judged
    few = num_images is not None and num_images < FEWEST_IMAGES
    if few:
        word = "too few images"
    return Cell(
        text=signed(difference.value),
        note=f"{signed_span(difference)}, {word}" if not math.isnan(difference.low) else "",
        tone="" if few else tone_of(difference),
        rank=None if math.isnan(difference.value) else difference.value,
    )


def of_run(what: str, name: str, names: Sequence[str]) -> str:
    """The head of a run's column; without the run where there is only one."""
    return what if len(names) == 1 else f"{name}: {what}"


def _reads(field: str) -> Callable[[RunAnalysis], float]:
    return lambda own: float(getattr(own.scores, field))


def _reads_mask(field: str) -> Callable[[RunAnalysis], float]:
    def read(own: RunAnalysis) -> float:
        scores: CocoScores | None = own.mask_scores
        return math.nan if scores is None else float(getattr(scores, field))

    return read


def describe_annotations(annotations: Annotations) -> str:
    """What was scored, in a phrase."""
    crowds = int(annotations.crowd.sum())
    without = f" ({count(crowds)} of them crowds)" if crowds else ""
    return (
        f"{count(len(annotations))} images, {count(len(annotations.boxes))} boxes{without}, "
        f"{count_classes(len(annotations.categories))}"
    )

"""Why a comparison may be too early to believe: runs that still learn, images that are too few.

Whether seeds agree is told by the verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from cachedet.comparison.summary import Comparison, Group, Summary
from cachedet.evaluation.significance import ComparisonReport
from cachedet.live.mode_names import PARTIAL, kind_of, mode_label

_STEEP = 0.1  # of the final AP, in the last quarter; runs that had levelled off gained up to 0.09
_NOTHING_LEARNT = 0.01  # AP
_OTHERS = ("tuned", "cached")  # what partial training is held against

OnImages = Callable[[Comparison], ComparisonReport | None]
"""Compares two groups image by image; None where their detections cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Caution:
    """One reason, as a sentence or two."""

    kind: Literal["nothing learnt", "still rising", "scored once", "few images"]
    text: str


def find_cautions(summary: Summary, *, on_images: OnImages) -> tuple[Caution, ...]:
    """All there are; none where nothing was scored. `on_images` is asked where it is close."""
    best = summary.best_of()
    if best is None:
        return ()
    if best.ap.mean < _NOTHING_LEARNT:
        text = (
            f"Too early to tell: no run has learnt to find anything yet, the best mean AP is "
            f"{best.ap.mean:.3f}. Train longer."
        )
        return (Caution(kind="nothing learnt", text=text),)
    found = (_still_rising(summary), _scored_once(summary), _few_images(summary, on_images))
    return tuple(caution for caution in found if caution is not None)


def _still_rising(summary: Summary) -> Caution | None:
    steep = [
        f"{_name(group)} by {rise:.3f} to {group.ap.mean:.3f}"
        for group in summary.groups
        if (rise := group.over_seeds("late_rise").mean) > _STEEP * group.ap.mean
    ]
    if not steep:
        return None
    text = (
        "Too early to tell: AP still rose steeply in the last quarter of training, "
        f"{'; '.join(steep)}. Training longer can turn the result round."
    )
    return Caution(kind="still rising", text=text)


def _scored_once(summary: Summary) -> Caution | None:
    once = [
        _name(group)
        for group in summary.groups
        if group.ap.count and not group.over_seeds("late_rise").count
    ]
    if not once:
        return None
    text = (
        f"Whether AP still rises is not known of {'; '.join(once)}: scored at the end alone. "
        "Train for more epochs, or validate more often (eval_every)."
    )
    return Caution(kind="scored once", text=text)


def _few_images(summary: Summary, on_images: OnImages) -> Caution | None:
    """Where seeds do not forbid a verdict, the scored images may."""
    close = []
    for comparison in _judged(summary):
        gap = abs(comparison.difference.mean)
        if comparison.judgement not in ("one seed", "beyond") or not gap < _width(comparison):
            continue
        report = on_images(comparison)
        if report is not None and not report.tells_apart:
            names = (mode_label(each.mode) for each in (comparison.first, comparison.second))
            interval = report.difference.ap
            close.append(
                f"{comparison.first.heads}: {' and '.join(names)} are {gap:.3f} apart, with other "
                f"images of the kind from {interval.low:+.3f} to {interval.high:+.3f}"
            )
    if not close:
        return None
    text = f"Too few images to tell. {'; '.join(close)} (95 % interval). Score on more images."
    return Caution(kind="few images", text=text)


def _judged(summary: Summary) -> Sequence[Comparison]:
    partial = [mode for mode in summary.modes if kind_of(mode) == PARTIAL]
    pairs = [("cached", "tuned"), *((mode, other) for mode in partial for other in _OTHERS)]
    return [comparison for pair in pairs for comparison in summary.compare(*pair)]


def _width(comparison: Comparison) -> float:
    """Of the wider interval over the images: differences of that size need no second look."""
    groups = (comparison.first, comparison.second)
    return max(group.over_seeds("high").mean - group.over_seeds("low").mean for group in groups)


def _name(group: Group) -> str:
    return f"{mode_label(group.mode)} with {group.heads}"

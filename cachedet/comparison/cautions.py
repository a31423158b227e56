"""Why a comparison may be too early to believe: runs that still learn, images that are too few.

Whether seeds agree is told by the verdicts. The same sentences stand on the page, at the terminal
and in JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cachedet.comparison.summary import Comparison, Group, Summary
from cachedet.live.mode_names import PARTIAL, kind_of, mode_label

_STEEP = 0.1  # of the final AP, in the last quarter; runs that had levelled off gained up to 0.09
_NOTHING_LEARNT = 0.01  # AP


@dataclass(frozen=True, kw_only=True)
class Caution:
    """One reason, as a sentence or two."""

    kind: Literal["nothing learnt", "still rising", "scored once", "few images"]
    text: str


def find_cautions(summary: Summary) -> tuple[Caution, ...]:
    """All there are; none where nothing was scored."""
    best = summary.best_of()
    if best is None:
        return ()
    if best.ap.mean < _NOTHING_LEARNT:
        text = (
            f"Too early to tell: no run has learnt to find anything yet, the best mean AP is "
            f"{best.ap.mean:.3f}. Train longer."
        )
        return (Caution(kind="nothing learnt", text=text),)
    found = (_still_rising(summary), _scored_once(summary), _few_images(summary))
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


def _few_images(summary: Summary) -> Caution | None:
    """Where seeds do not forbid a verdict, the scored images may."""
    close = [
        f"{c.first.heads}: {mode_label(c.first.mode)} and {mode_label(c.second.mode)} are "
        f"{abs(c.difference.mean):.3f} apart, and a 95 % interval over the images is "
        f"{_width(c):.3f} wide"
        for c in _judged(summary)
        if c.judgement in ("one seed", "beyond") and abs(c.difference.mean) < _width(c) / 2
    ]
    if not close:
        return None
    text = (
        f"Too few images to tell. {'; '.join(close)}. Score on more images, or let `cachedet "
        "report` compare two cells image by image."
    )
    return Caution(kind="few images", text=text)


def _judged(summary: Summary) -> Sequence[Comparison]:
    partial = [mode for mode in summary.modes if kind_of(mode) == PARTIAL]
    pairs = [("cached", "tuned"), *((mode, "tuned") for mode in partial)]
    return [comparison for pair in pairs for comparison in summary.compare(*pair)]


def _width(comparison: Comparison) -> float:
    """Of the wider interval over the images."""
    groups = (comparison.first, comparison.second)
    return max(group.over_seeds("high").mean - group.over_seeds("low").mean for group in groups)


def _name(group: Group) -> str:
    return f"{mode_label(group.mode)} with {group.heads}"

"""The ways to train, by name, for those who need no backbone: this module imports nothing of ours.

``partial_C4`` trains what the backbone has behind C4, from the cache.
"""

from __future__ import annotations

from collections.abc import Iterable

Mode = str
MODES: tuple[Mode, ...] = ("cached", "live", "tuned", "scratch")  # compared unless others are named
PARTIAL = "partial"
_LABELS = {
    "cached": "cached",
    PARTIAL: "last stages trained",
    "live": "live frozen",
    "tuned": "fine-tuned",
    "scratch": "from scratch",
}
KINDS = tuple(_LABELS)  # in the order in which they are shown


def partial_mode(cut: str) -> Mode:
    """The mode that trains the stages behind the level `cut`."""
    return f"{PARTIAL}_{cut}"


def kind_of(mode: Mode) -> str:
    """One of KINDS, or the text itself where it names no mode."""
    return mode if cut_of(mode) is None else PARTIAL


def cut_of(mode: Mode) -> str | None:
    """The level behind which stages are trained; None of modes that have none."""
    kind, _, cut = mode.partition("_")
    return cut if kind == PARTIAL and cut else None


def is_mode(text: str) -> bool:
    """Whether a comparison can have it."""
    return text in MODES or cut_of(text) is not None


def needs_cache(mode: Mode) -> bool:
    """Whether it trains from a store."""
    return kind_of(mode) in ("cached", PARTIAL)


def is_frozen(mode: Mode) -> bool:
    """Whether all of the backbone stays as it is."""
    return mode in ("cached", "live")


def mode_label(mode: Mode) -> str:
    """The mode for readers."""
    cut = cut_of(mode)
    return _LABELS[kind_of(mode)] + (f" (from {cut})" if cut else "")


def sort_modes(modes: Iterable[Mode]) -> tuple[Mode, ...]:
    """Each once, in the order of KINDS; of partial ones the latest cut first."""
    rest = sorted(set(modes), reverse=True)
    return tuple(sorted(rest, key=lambda mode: KINDS.index(kind_of(mode))))

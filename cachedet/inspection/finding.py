"""One thing that a check found: how bad it is, how often, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cachedet.text import printable

Rank = Literal["stops", "look at", "fine"]
"""`stops`: extract refuses it, or training on it would be wrong."""
RANKS: tuple[Rank, ...] = get_args(Rank)
NAMED = 5  # places of a finding on the screen
MOST_PLACES = 1000  # of a finding that are kept


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where something was found: an image of a set, and perhaps one of its boxes."""

    text: str  # for a person
    set_name: str
    row: int
    box: int | None = None  # its number in the set's columns
    like: tuple[str, int] | None = None  # set and row of the image that it equals


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is to be said of one kind of fault in one set, or that there is none."""

    rank: Rank
    kind: str  # a word or two; they stand at the boxes of the sheet
    text: str  # a sentence with the count
    advice: str = ""  # what to do
    count: int = 0
    places: tuple[Place, ...] = ()  # the first MOST_PLACES

    def to_json(self) -> dict[str, Any]:
        return {
            "rank": self.rank,
            "kind": self.kind,
            "text": self.text,
            "advice": self.advice,
            "count": self.count,
            "places": [place.text for place in self.places],
        }

    @property
    def first_places(self) -> list[str]:
        """For the screen."""
        return [printable(place.text) for place in self.places[:NAMED]]


def most_important_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """By rank; within one the order stays."""
    return tuple(sorted(findings, key=lambda finding: RANKS.index(finding.rank)))


def count_words(count: int, total: int, noun: str, what: str) -> str:
    """``2, 60, "images", "are lost"`` -> ``2 of 60 images are lost``; ``1 of 60 images is lost``.

    With the share, where it says something.
    """
    share = f" ({count / total:.0%})" if total > 100 and 0.01 <= count / total < 1 else ""
    verb, space, rest = what.partition(" ")
    verb = _OF_ONE.get(verb, verb) if count == 1 else verb
    return f"{count:,} of {total:,} {noun}{share} {verb}{space}{rest}"


_OF_ONE = {"are": "is", "have": "has", "look": "looks", "cover": "covers", "lie": "lies"}

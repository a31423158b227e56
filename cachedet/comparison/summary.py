"""Runs of a comparison taken together: means over seeds, and what the seeds allow to conclude."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cachedet.comparison.results import CellResult
from cachedet.evaluation.precision import or_null
from cachedet.live.modes import MODES, Mode

Judgement = Literal["nothing", "one seed", "within", "beyond"]
FROZEN: tuple[Mode, ...] = ("cached", "live")
LEARNED: tuple[Mode, ...] = ("tuned", "scratch")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over seeds; NaN where no run has it."""

    mean: float
    least: float
    most: float
    count: int  # of runs that have the figure

    @property
    def width(self) -> float:
        return self.most - self.least

    def to_json(self) -> dict[str, Any]:
        ends = {name: or_null(getattr(self, name)) for name in ("mean", "least", "most")}
        return {**ends, "count": self.count}


@dataclass(frozen=True, kw_only=True)
class Group:
    """The runs of one mode with the same heads.

    Attributes:
        cells: that were trained and scored, by seed.
        failed: the others.
    """

    heads: str
    mode: Mode
    cells: tuple[CellResult, ...]
    failed: tuple[CellResult, ...]

    @property
    def ap(self) -> Spread:
        return self.over_seeds("ap")

    @property
    def peak_memory(self) -> int:
        return max((own.peak_memory for own in self.cells), default=0)

    def over_seeds(self, field: str) -> Spread:
        """Of a figure of `CellResult`, by its name."""
        return spread_of(getattr(own, field) for own in self.cells)

    def to_json(self) -> dict[str, Any]:
        figures = ("ap", "ap50", "ap75", "seconds", "extraction_seconds", "step_flops",
                   "parameters", "cache_nbytes", "steps", "epochs")  # fmt: skip
        return {
            "heads": self.heads,
            "mode": self.mode,
            "failed": [asdict(own.key) for own in self.failed],
            "peak_memory": self.peak_memory,
            **{name: self.over_seeds(name).to_json() for name in figures},
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two groups by the seeds that both have.

    Attributes:
        seeds: for which both have an AP; what follows is of these.
        difference: first minus second, seed by seed.
        spread: how far apart the runs of one group lie, of the group where they lie farther; NaN
            for one seed.
    """

    first: Group
    second: Group
    seeds: tuple[int, ...]
    first_ap: Spread
    second_ap: Spread
    difference: Spread
    spread: float

    @property
    def judgement(self) -> Judgement:
        """Beyond: the means differ by more than the seeds of either group do."""
        if not self.seeds:
            return "nothing"
        if len(self.seeds) == 1:
            return "one seed"
        return "beyond" if abs(self.difference.mean) > self.spread else "within"

    def to_json(self) -> dict[str, Any]:
        return {
            "first": {"heads": self.first.heads, "mode": self.first.mode},
            "second": {"heads": self.second.heads, "mode": self.second.mode},
            "seeds": list(self.seeds),
            "difference": self.difference.to_json(),
            "spread": or_null(self.spread),
            "judgement": self.judgement,
        }


@dataclass(frozen=True, kw_only=True)
class ClassDifference:
    """AP of a class in the cached mode minus the fine-tuned one, seed by seed."""

    name: str
    boxes: int  # to learn from
    difference: Spread


@dataclass(frozen=True, kw_only=True)
class BinSpread:
    """AP of the classes of one bin of training boxes."""

    name: str
    classes: int
    ap: Spread


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All runs together; `groups` by heads as they came, then by mode."""

    groups: tuple[Group, ...]

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(own.heads for own in self.groups))

    @property
    def modes(self) -> tuple[Mode, ...]:
        present = {own.mode for own in self.groups}
        return tuple(mode for mode in MODES if mode in present)

    @property
    def failed(self) -> tuple[CellResult, ...]:
        return tuple(cell for own in self.groups for cell in own.failed)

    @property
    def best(self) -> Group | None:
        """With the highest mean AP; None where nothing was scored."""
        return self.best_of(MODES)

    def best_of(self, modes: Sequence[Mode]) -> Group | None:
        """The same among some modes."""
        known = [own for own in self.groups if own.mode in modes and own.ap.count]
        return max(known, key=lambda own: own.ap.mean, default=None)

    def find(self, heads: str, mode: Mode) -> Group | None:
        return next((o for o in self.groups if o.heads == heads and o.mode == mode), None)

    def compare(self, first: Mode, second: Mode) -> tuple[Comparison, ...]:
        """Of each heads that were trained both ways."""
        pairs = [(self.find(own, first), self.find(own, second)) for own in self.heads]
        return tuple(compare_groups(one, other) for one, other in pairs if one and other)

    def to_json(self) -> dict[str, Any]:
        best = self.best
        return {
            "best": None if best is None else {"heads": best.heads, "mode": best.mode},
            "groups": [own.to_json() for own in self.groups],
            "cached_against_tuned": [o.to_json() for o in self.compare("cached", "tuned")],
            "cached_against_live": [o.to_json() for o in self.compare("cached", "live")],
            "class_differences": {
                heads: [
                    {"name": o.name, "boxes": o.boxes, "difference": o.difference.to_json()}
                    for o in class_differences(self, heads)
                ]
                for heads in self.heads
            },
        }


def summarise(cells: Sequence[CellResult]) -> Summary:
    """Group runs by heads and mode."""
    groups = []
    for heads in dict.fromkeys(cell.key.heads for cell in cells):
        for mode in MODES:
            own = [cell for cell in cells if (cell.key.heads, cell.key.mode) == (heads, mode)]
            if not own:
                continue
            own.sort(key=lambda cell: cell.key.seed)
            groups.append(
                Group(
                    heads=heads,
                    mode=mode,
                    cells=tuple(cell for cell in own if not cell.has_failed),
                    failed=tuple(cell for cell in own if cell.has_failed),
                )
            )
    return Summary(groups=tuple(groups))


def spread_of(values: Iterable[float]) -> Spread:
    """Mean and ends of those that are numbers."""
    known = [float(value) for value in values if not math.isnan(value)]
    if not known:
        return Spread(mean=math.nan, least=math.nan, most=math.nan, count=0)
    mean = math.fsum(known) / len(known)
    return Spread(mean=mean, least=min(known), most=max(known), count=len(known))


def compare_groups(first: Group, second: Group) -> Comparison:
    """By the seeds for which both have an AP, as those runs saw the same order of images."""
    one, other = _ap_by_seed(first), _ap_by_seed(second)
    seeds = sorted(one.keys() & other.keys())
    first_ap = spread_of(one[seed] for seed in seeds)
    second_ap = spread_of(other[seed] for seed in seeds)
    return Comparison(
        first=first,
        second=second,
        seeds=tuple(seeds),
        first_ap=first_ap,
        second_ap=second_ap,
        difference=spread_of(one[seed] - other[seed] for seed in seeds),
        spread=max(first_ap.width, second_ap.width) if len(seeds) > 1 else math.nan,
    )


def class_differences(summary: Summary, heads: str) -> tuple[ClassDifference, ...]:
    """Cached minus fine-tuned for each class; empty where one of the two is missing."""
    cached, tuned = summary.find(heads, "cached"), summary.find(heads, "tuned")
    if cached is None or tuned is None:
        return ()
    by_seed = {cell.key.seed: cell for cell in tuned.cells}
    pairs = [(cell, by_seed[cell.key.seed]) for cell in cached.cells if cell.key.seed in by_seed]
    found: dict[str, list[float]] = {}
    boxes: dict[str, int] = {}
    for one, other in pairs:
        theirs = {own.name: own.ap for own in other.classes}
        for own in one.classes:
            boxes[own.name] = own.boxes
            found.setdefault(own.name, []).append(own.ap - theirs.get(own.name, math.nan))
    return tuple(
        ClassDifference(name=name, boxes=boxes[name], difference=spread_of(values))
        for name, values in found.items()
    )


def bin_spreads(group: Group) -> tuple[BinSpread, ...]:
    """AP of each bin over the seeds, bins in their order; empty where there are none."""
    found: dict[str, list[float]] = {}
    classes: dict[str, int] = {}
    for cell in group.cells:
        for own in cell.bins:
            classes[own.name] = own.classes
            found.setdefault(own.name, []).append(own.ap)
    return tuple(
        BinSpread(name=name, classes=classes[name], ap=spread_of(values))
        for name, values in found.items()
    )


def _ap_by_seed(group: Group) -> dict[int, float]:
    return {cell.key.seed: cell.ap for cell in group.cells if not math.isnan(cell.ap)}

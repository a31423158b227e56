"""Runs of a comparison taken together: means over seeds, and what the seeds allow to conclude."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cachedet.comparison.results import CellResult
from cachedet.evaluation.precision import nan_to_null
from cachedet.live.mode_names import PARTIAL, Mode, kind_of, sort_modes

Judgement = Literal["nothing", "one seed", "within", "beyond"]
_FIGURES = (
    "ap", "ap50", "ap75", "seconds", "processor_seconds", "extraction_seconds", "step_flops",
    "parameters", "cache_nbytes", "steps", "epochs", "late_rise",
)  # fmt: skip


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


@dataclass(frozen=True, kw_only=True)
class Group:
    """The runs of one mode with the same heads, by seed."""

    heads: str
    mode: Mode
    cells: tuple[CellResult, ...]  # that were trained and scored
    failed: tuple[CellResult, ...]

    @property
    def ap(self) -> Spread:
        return self.over_seeds("ap")

    @property
    def ends(self) -> tuple[float, float]:
        """Least and most AP of the seeds; of one seed the 95 % interval over the images."""
        if self.ap.count != 1:
            return self.ap.least, self.ap.most
        cell = next(cell for cell in self.cells if not math.isnan(cell.ap))
        return cell.low, cell.high

    @property
    def peak_memory(self) -> int:
        return max((cell.peak_memory for cell in self.cells), default=0)

    def of_seed(self, seed: int) -> CellResult:
        return next(cell for cell in self.cells if cell.key.seed == seed)

    def over_seeds(self, field: str) -> Spread:
        """A figure of `CellResult`, by its name."""
        return spread_of(getattr(cell, field) for cell in self.cells)

    def name_json(self) -> dict[str, str]:
        return {"heads": self.heads, "mode": self.mode}

    def to_json(self) -> dict[str, Any]:
        return {
            **self.name_json(),
            "failed": [asdict(cell.key) for cell in self.failed],
            "peak_memory": self.peak_memory,
            **{name: asdict(self.over_seeds(name)) for name in _FIGURES},
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two groups by the seeds that both have."""

    first: Group
    second: Group
    seeds: tuple[int, ...]  # for which both have an AP; what follows is of these
    first_ap: Spread
    second_ap: Spread
    difference: Spread  # first minus second, seed by seed
    spread: float  # width of the AP of that group where it is wider; NaN for one seed

    @property
    def judgement(self) -> Judgement:
        """Judge it: `beyond` where the means differ by more than the seeds of either group do."""
        if not self.seeds:
            return "nothing"
        if len(self.seeds) == 1:
            return "one seed"
        return "beyond" if abs(self.difference.mean) > self.spread else "within"

    def to_json(self) -> dict[str, Any]:
        return {
            "first": self.first.name_json(),
            "second": self.second.name_json(),
            "seeds": list(self.seeds),
            "difference": asdict(self.difference),
            "spread": self.spread,
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
        return tuple(dict.fromkeys(group.heads for group in self.groups))

    @property
    def modes(self) -> tuple[Mode, ...]:
        return sort_modes(group.mode for group in self.groups)

    @property
    def failed(self) -> tuple[CellResult, ...]:
        return tuple(cell for group in self.groups for cell in group.failed)

    def best_of(self, modes: Sequence[Mode] | None = None) -> Group | None:
        """The group with the highest mean AP, of all or these modes; None if none was scored."""
        wanted = self.modes if modes is None else modes
        scored = [group for group in self.groups if group.mode in wanted and group.ap.count]
        return max(scored, key=lambda group: group.ap.mean, default=None)

    def find(self, heads: str, mode: Mode) -> Group | None:
        return next((g for g in self.groups if (g.heads, g.mode) == (heads, mode)), None)

    def compare(self, first: Mode, second: Mode) -> tuple[Comparison, ...]:
        """One comparison for each heads that were trained both ways."""
        pairs = [(self.find(heads, first), self.find(heads, second)) for heads in self.heads]
        return tuple(compare_groups(one, other) for one, other in pairs if one and other)

    def to_json(self) -> dict[str, Any]:
        best = self.best_of()
        values = {
            "best": None if best is None else best.name_json(),
            "groups": [group.to_json() for group in self.groups],
            "cached_against_tuned": [c.to_json() for c in self.compare("cached", "tuned")],
            "partial_against_tuned": [
                comparison.to_json()
                for mode in self.modes
                if kind_of(mode) == PARTIAL
                for comparison in self.compare(mode, "tuned")
            ],
            "cached_against_live": [c.to_json() for c in self.compare("cached", "live")],
            "class_differences": {
                heads: [asdict(difference) for difference in class_differences(self, heads)]
                for heads in self.heads
            },
        }
        return {name: nan_to_null(value) for name, value in values.items()}


def summarise(cells: Sequence[CellResult]) -> Summary:
    """Group runs by heads and mode."""
    groups = []
    by_seed = sorted(cells, key=lambda cell: cell.key.seed)
    for heads in dict.fromkeys(cell.key.heads for cell in cells):
        for mode in sort_modes(cell.key.mode for cell in cells):
            runs = [cell for cell in by_seed if (cell.key.heads, cell.key.mode) == (heads, mode)]
            good = tuple(cell for cell in runs if not cell.has_failed)
            failed = tuple(cell for cell in runs if cell.has_failed)
            if runs:
                groups.append(Group(heads=heads, mode=mode, cells=good, failed=failed))
    return Summary(groups=tuple(groups))


def spread_of(values: Iterable[float]) -> Spread:
    """Mean and ends of those that are numbers."""
    known = [float(value) for value in values if not math.isnan(value)]
    if not known:
        return Spread(mean=math.nan, least=math.nan, most=math.nan, count=0)
    mean = math.fsum(known) / len(known)
    return Spread(mean=mean, least=min(known), most=max(known), count=len(known))


def compare_groups(first: Group, second: Group) -> Comparison:
    """Compare by the seeds for which both have an AP: those runs saw the same order of images."""
    one, other = (
        {cell.key.seed: cell.ap for cell in group.cells if not math.isnan(cell.ap)}
        for group in (first, second)
    )
    seeds = sorted(one.keys() & other.keys())
    first_ap, second_ap = (spread_of(ap[seed] for seed in seeds) for ap in (one, other))
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
    boxes: dict[str, int] = {}
    gaps: dict[str, list[float]] = {}
    tuned_ap = {cell.key.seed: {o.name: o.ap for o in cell.classes} for cell in tuned.cells}
    for cell in cached.cells:
        if cell.key.seed not in tuned_ap:
            continue
        for figure in cell.classes:
            boxes[figure.name] = figure.boxes
            other = tuned_ap[cell.key.seed].get(figure.name, math.nan)
            gaps.setdefault(figure.name, []).append(figure.ap - other)
    return tuple(
        ClassDifference(name=name, boxes=boxes[name], difference=spread_of(values))
        for name, values in gaps.items()
    )


def bin_spreads(group: Group) -> tuple[BinSpread, ...]:
    """AP of each bin over the seeds, bins in their order; empty where there are none."""
    classes: dict[str, int] = {}
    values: dict[str, list[float]] = {}
    for cell in group.cells:
        for figure in cell.bins:
            classes[figure.name] = figure.classes
            values.setdefault(figure.name, []).append(figure.ap)
    return tuple(
        BinSpread(name=name, classes=classes[name], ap=spread_of(of_bin))
        for name, of_bin in values.items()
    )

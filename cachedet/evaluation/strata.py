"""AP by the number of training annotations of a class: the paper's figures 4 and 5 (2204.00484)."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cachedet.errors import InputError
from cachedet.evaluation.metrics import ClassScore
from cachedet.evaluation.precision import to_json_values

DEFAULT_EDGES = (0, 10, 100, 1000)


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Classes with `low` <= training annotations < `high` (None: no upper end).

    AP and AP50 are means over those of its classes that have boxes in the scored images; NaN
    where none has.
    """

    low: int
    high: int | None
    ap: float
    ap50: float
    num_classes: int
    num_scored: int  # of them with boxes in the scored images
    category_ids: tuple[int, ...]

    @property
    def name(self) -> str:
        """The bin as `10-99` or `1000+`."""
        return f"{self.low}+" if self.high is None else f"{self.low}-{self.high - 1}"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **to_json_values(self)}


def stratify(
    per_class: Sequence[ClassScore],
    counts: Mapping[int, int],
    *,
    edges: Sequence[int] = DEFAULT_EDGES,
) -> tuple[Stratum, ...]:
    """AP of classes in bins [e0, e1), [e1, e2), ..., [last, infinity) of training annotations.

    Raises InputError where a class has no count, or the edges do not rise from 0.
    """
    check_edges(edges)
    missing = [score.category_id for score in per_class if score.category_id not in counts]
    if missing:
        raise InputError(
            f"the training data does not know category id {missing[0]} "
            f"({len(missing)} of {len(per_class)} classes are unknown to it); give the data the "
            "run was trained on"
        )
    ends: list[int | None] = [*edges[1:], None]
    bins: list[list[ClassScore]] = [[] for _ in edges]
    for score in per_class:
        bins[bisect_right(edges, counts[score.category_id]) - 1].append(score)
    return tuple(map(_stratum, edges, ends, bins))


def parse_edges(text: str) -> tuple[int, ...]:
    """`0,10,100` -> (0, 10, 100). Raises InputError."""
    try:
        edges = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"bins of training annotations need whole numbers and commas, such as 0,10,100,1000, "
            f"got {text!r}"
        ) from error
    check_edges(edges)
    return edges


def check_edges(edges: Sequence[int]) -> None:
    """Refuse edges that do not rise from 0; the user may have named them. Raises InputError."""
    rising = all(low < high for low, high in itertools.pairwise(edges))
    if not edges or edges[0] != 0 or not rising:
        raise InputError(
            f"bins of training annotations need edges that rise from 0, such as 0,10,100,1000, "
            f"got {','.join(map(str, edges)) or 'none'}"
        )


def _stratum(low: int, high: int | None, scores: Sequence[ClassScore]) -> Stratum:
    known = [score for score in scores if not math.isnan(score.ap)]
    figures = [(score.ap, score.ap50) for score in known] or [(math.nan, math.nan)]
    ap, ap50 = np.mean(figures, axis=0).tolist()
    return Stratum(
        low=low,
        high=high,
        ap=ap,
        ap50=ap50,
        num_classes=len(scores),
        num_scored=len(known),
        category_ids=tuple(score.category_id for score in scores),
    )

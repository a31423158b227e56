"""Average recall of proposals: what the first stage of a two-stage detector leaves to the second.

Classes do not matter: a box is found by any proposal (Hosang et al., arXiv 1502.05082; COCO's
`useCats = 0`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.evaluation.detection_table import Found, tabulate
from cachedet.evaluation.json_figures import or_null
from cachedet.evaluation.matches import AREAS, MatchTable, match_detections
from cachedet.evaluation.precision import count_truths
from cachedet.structures import CategoryMap, Truth

DEFAULT_LIMITS = (10, 100, 300, 1000)


@dataclass(frozen=True, kw_only=True)
class ProposalRecall:
    """Recall of the best `limit` proposals of each picture, mean over IoU 0.5 to 0.95 (NaN: none
    to find)."""

    limit: int
    ar: float
    ar_small: float
    ar_medium: float
    ar_large: float
    recall50: float  # at IoU 0.5 only
    recall75: float

    def to_json(self) -> dict[str, Any]:
        """JSON values; null instead of NaN."""
        return {name: or_null(value) for name, value in dataclasses.asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class ProposalReport:
    """Recall of a detector's proposals at rising limits; beyond its own limit it stays."""

    most_per_picture: int  # that the detector keeps
    at_limits: tuple[ProposalRecall, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "most_per_picture": self.most_per_picture,
            "at_limits": [recall.to_json() for recall in self.at_limits],
        }


def proposal_recall(
    truth: Truth, proposals: Found, *, limits: Sequence[int] = DEFAULT_LIMITS
) -> tuple[ProposalRecall, ...]:
    """Recall at each limit; scores are objectness, labels of proposals are not looked at.

    Raises InputError as `tabulate`, ValueError on a limit below 1.
    """
    if not limits or min(limits) < 1:
        raise ValueError(f"expected limits of at least 1 proposal a picture, got {list(limits)}")
    table = tabulate(truth, proposals)
    table = dataclasses.replace(table, labels=np.zeros_like(table.labels))
    matches = match_detections(_without_classes(truth), table, most_per_class=max(limits))
    return tuple(_at_limit(matches, limit) for limit in sorted(limits))


def _without_classes(truth: Truth) -> Truth:
    """One class; boxes class by class in each picture, as COCO lists them."""
    rows = np.repeat(np.arange(len(truth)), np.diff(truth.offsets))
    order = np.lexsort((truth.labels, rows))
    return Truth(
        image_ids=truth.image_ids,
        file_names=truth.file_names,
        sizes_hw=truth.sizes_hw,
        offsets=truth.offsets,
        boxes=truth.boxes[order],
        labels=np.zeros_like(truth.labels),
        crowd=truth.crowd[order],
        areas=truth.areas[order],
        categories=CategoryMap(ids=(0,), names=("object",)),
        sides_wh=truth.sides_wh[order] if truth.sides_wh is not None else None,
    )


def _at_limit(matches: MatchTable, limit: int) -> ProposalRecall:
    counts = count_truths(matches)[:, 0]
    within = matches.ranks < limit
    hits = (matches.matched & ~matches.ignored & within).sum(axis=2)  # (A, T)
    recall = np.where(counts[:, None] > 0, hits / np.maximum(counts, 1)[:, None], np.nan)
    of_area: dict[str, NDArray[np.float64]] = dict(zip(AREAS, recall, strict=True))
    return ProposalRecall(
        limit=limit,
        ar=float(of_area["all"].mean()),
        ar_small=float(of_area["small"].mean()),
        ar_medium=float(of_area["medium"].mean()),
        ar_large=float(of_area["large"].mean()),
        recall50=float(of_area["all"][matches.threshold(0.5)]),
        recall75=float(of_area["all"][matches.threshold(0.75)]),
    )

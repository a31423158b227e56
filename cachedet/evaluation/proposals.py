"""Recall of what the first stage proposes, whatever the class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cachedet.evaluation.detection_table import DetectionsOrTable, tabulate
from cachedet.evaluation.metrics import accumulate
from cachedet.evaluation.precision import to_json_values
from cachedet.structures import Annotations

DEFAULT_LIMITS = (10, 100, 300, 1000)  # proposals of an image


@dataclass(frozen=True, kw_only=True)
class ProposalRecall:
    """Recall of the best `limit` proposals of each image, mean over IoU 0.5 to 0.95.

    NaN where there are no boxes.
    """

    limit: int
    ar: float
    ar_small: float
    ar_medium: float
    ar_large: float
    recall50: float  # at IoU 0.5 only
    recall75: float


@dataclass(frozen=True, kw_only=True)
class ProposalReport:
    """Recall of a detector's proposals at rising limits; beyond the detector's it stays."""

    most_per_image: int  # that the detector keeps
    at_limits: tuple[ProposalRecall, ...]

    def to_json(self) -> dict[str, Any]:
        return to_json_values(self)


def proposal_recall(
    annotations: Annotations,
    proposals: DetectionsOrTable,
    *,
    limits: Sequence[int] = DEFAULT_LIMITS,
) -> tuple[ProposalRecall, ...]:
    """Recall at each limit; scores are objectness, labels of proposals are not looked at.

    Raises InputError as `tabulate`.
    """
    table = tabulate(annotations, proposals)
    table = replace(table, labels=np.zeros_like(table.labels))
    limits = sorted(limits)
    full = accumulate(annotations, table, limits=limits, with_classes=False)
    recalls = np.where(full.recall[:, 0] < 0, math.nan, full.recall[:, 0])  # (T, A, L)
    return tuple(
        ProposalRecall(
            limit=limit,
            ar=float(recall[:, 0].mean()),
            ar_small=float(recall[:, 1].mean()),
            ar_medium=float(recall[:, 2].mean()),
            ar_large=float(recall[:, 3].mean()),
            recall50=float(recall[0, 0]),
            recall75=float(recall[5, 0]),
        )
        for limit, recall in zip(limits, np.moveaxis(recalls, -1, 0), strict=True)
    )

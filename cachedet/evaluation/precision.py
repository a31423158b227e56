"""Average precision as COCO has it, and figures as JSON values.

Letters: R recalls, D detections.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Floats = NDArray[np.float64]
RECALLS: Floats = np.linspace(0.0, 1.0, 101)
TINY = np.spacing(1)  # pycocotools' guard against 0 / 0, which it adds to every denominator


def average_precision(right: NDArray[np.bool_], num_gt: int) -> float:
    """Of detections (D,) by falling score: mean of the best precision at each recall or beyond."""
    hits = np.cumsum(right)
    precision = hits / (np.arange(1, len(right) + 1) + TINY)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(hits / num_gt, RECALLS, side="left")].mean())


def mean_known(values: Floats) -> float:
    """Mean of those that are not -1, pycocotools' "no such boxes"; NaN where there are none."""
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan


def to_json_values(record: DataclassInstance) -> dict[str, Any]:
    """Fields of a dataclass as JSON values; null instead of NaN."""
    values: dict[str, Any] = nan_to_null(asdict(record))
    return values


def nan_to_null(values: Any) -> Any:
    """Values, dicts and lists of them for JSON: null (None) stands for NaN, nothing to score."""
    if isinstance(values, dict):
        return {name: nan_to_null(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [nan_to_null(value) for value in values]
    return None if isinstance(values, float) and math.isnan(values) else values

"""Figures that only `cachedet eval` can compute, as results.json holds them: LVIS, proposals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cachedet.reporting.content import Cell, Row
from cachedet.reporting.figures import count, figure

_LVIS = {
    "ap": "AP",
    "ap_rare": "AP of rare classes",
    "ap_common": "AP of common classes",
    "ap_frequent": "AP of frequent classes",
}
_NOT_ASKED = Cell(text="not asked for", tone="faint")


def recorded_rows(results: Sequence[dict[str, Any]]) -> tuple[Row, ...]:
    """Lines of the runs' results.json; none where no run has such figures."""
    return (*_lvis_rows(results), *_proposal_rows(results))


def describe_oddities(name: str, results: dict[str, Any]) -> str:
    """What eval scored as it stood but noticed; empty where it noticed nothing."""
    oddities = _object(results.get("oddities"))
    noticed = [f"{count(n)} {what}" for what, n in oddities.items() if isinstance(n, int) and n > 0]
    return f"{name}: eval noticed {', '.join(noticed)}." if noticed else ""


def _lvis_rows(results: Sequence[dict[str, Any]]) -> list[Row]:
    scores = [_object(of_run.get("lvis")) for of_run in results]
    if not any(scores):
        return []
    rows = [Row(name="LVIS v1", cells=(), group=True)]
    for key, name in _LVIS.items():
        cells = [
            Cell(text=figure(_number(of_run.get(key)))) if of_run else _NOT_ASKED
            for of_run in scores
        ]
        rows.append(Row(name=name, cells=tuple(cells)))
    return rows


def _proposal_rows(results: Sequence[dict[str, Any]]) -> list[Row]:
    by_limit = []
    for of_run in results:
        recalls = _object(of_run.get("proposals")).get("at_limits")
        known = map(_object, recalls if isinstance(recalls, list) else ())
        by_limit.append({one["limit"]: one for one in known if isinstance(one.get("limit"), int)})
    if not any(by_limit):
        return []
    rows = [Row(name="Recall of proposals", cells=(), group=True)]
    for limit in sorted({limit for of_run in by_limit for limit in of_run}):
        cells = tuple(_recall_cell(of_run.get(limit)) for of_run in by_limit)
        rows.append(Row(name=f"best {count(limit)} an image", cells=cells))
    return rows


def _recall_cell(recall: dict[str, Any] | None) -> Cell:
    if recall is None:
        return _NOT_ASKED
    at_half = figure(_number(recall.get("recall50")))
    return Cell(text=figure(_number(recall.get("ar"))), note=f"at IoU 0.5 {at_half}")


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None

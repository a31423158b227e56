"""Figures that only `cachedet eval` can compute, as results.json holds them: LVIS, proposals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cachedet.reporting.content import Cell, Row, count, figure

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
    found = _object(results.get("oddities"))
    told = [f"{count(n)} {what}" for what, n in found.items() if isinstance(n, int) and n > 0]
    return f"{name}: eval noticed {', '.join(told)}." if told else ""


def _lvis_rows(results: Sequence[dict[str, Any]]) -> list[Row]:
    found = [_object(own.get("lvis")) for own in results]
    if not any(found):
        return []
    rows = [Row(name="LVIS v1", cells=(), group=True)]
    for key, name in _LVIS.items():
        cells = [Cell(text=figure(_number(own.get(key)))) if own else _NOT_ASKED for own in found]
        rows.append(Row(name=name, cells=tuple(cells)))
    return rows


def _proposal_rows(results: Sequence[dict[str, Any]]) -> list[Row]:
    by_limit = [
        {
            own["limit"]: own
            for own in _list(_object(result.get("proposals")).get("at_limits"))
            if isinstance(own, dict) and isinstance(own.get("limit"), int)
        }
        for result in results
    ]
    if not any(by_limit):
        return []
    rows = [Row(name="Recall of proposals", cells=(), group=True)]
    for limit in sorted({limit for own in by_limit for limit in own}):
        cells = [
            Cell(
                text=figure(_number(own[limit].get("ar"))),
                note=f"at IoU 0.5 {figure(_number(own[limit].get('recall50')))}",
            )
            if limit in own
            else _NOT_ASKED
            for own in by_limit
        ]
        rows.append(Row(name=f"best {count(limit)} an image", cells=tuple(cells)))
    return rows


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None

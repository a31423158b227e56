"""Figures that come from results.json."""

from __future__ import annotations

from cachedet.reporting.recorded import describe_oddities, recorded_rows


def test_lvis_and_proposals_of_the_runs_that_have_them() -> None:
    first = {
        "lvis": {"ap": 0.25, "ap_rare": None, "ap_common": 0.2, "ap_frequent": 0.3},
        "proposals": {"at_limits": [{"limit": 10, "ar": 0.5, "recall50": 0.75}]},
    }
    rows = recorded_rows([first, {}])
    cells = {row.name: [cell.plain for cell in row.cells] for row in rows}
    assert cells["AP"] == ["0.250", "not asked for"]
    assert cells["AP of rare classes"] == ["–", "not asked for"]
    assert cells["best 10 an image"] == ["0.500 (at IoU 0.5 0.750)", "not asked for"]
    assert [row.name for row in rows if row.group] == ["LVIS v1", "Recall of proposals"]


def test_nothing_recorded_is_no_lines() -> None:
    assert recorded_rows([{}, {"lvis": None, "proposals": {"at_limits": None}}]) == ()


def test_only_oddities_that_occur_are_named() -> None:
    results = {"oddities": {"exact duplicates": 1200, "boxes without area": 0}}
    assert describe_oddities("run", results) == "run: eval noticed 1,200 exact duplicates."
    assert describe_oddities("run", {"oddities": {"boxes without area": 0}}) == ""
    assert describe_oddities("run", {}) == ""

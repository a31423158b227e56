"""What a cell says of its curve, and what the detections of two say of each other."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cachedet.comparison.folder import ComparisonFolder
from cachedet.comparison.results import CellKey, CellResult
from cachedet.comparison.scoring import compare_on_images, late_rise
from cachedet.comparison.summary import summarise
from cachedet.reporting.scored_run import TrainingPoint


def curve(**ap_at: float | None) -> list[TrainingPoint]:
    """``s20=0.1``: AP after 20 steps; None where a row has only a loss."""
    return [TrainingPoint(step=int(at[1:]), loss=1.0, val_ap=ap) for at, ap in ap_at.items()]


def test_what_ap_gained_in_the_last_quarter() -> None:
    every = curve(s25=0.1, s50=0.2, s60=None, s75=0.3, s100=0.34)
    assert late_rise(every, steps=100, ap=0.35) == pytest.approx(0.05)  # the last score counts
    assert late_rise(curve(s50=0.2), steps=100, ap=0.4) == pytest.approx(0.1)  # half of the way
    assert late_rise(curve(s90=0.2), steps=100, ap=0.4) == pytest.approx(0.2)  # at least so much
    assert late_rise(curve(s75=0.3, s50=0.2), steps=100, ap=0.2) == pytest.approx(-0.1)


def test_one_score_says_nothing_of_a_rise() -> None:
    assert math.isnan(late_rise([], steps=100, ap=0.4))
    assert math.isnan(late_rise(curve(s50=None, s100=0.4), steps=100, ap=0.4))
    assert math.isnan(late_rise(curve(s50=0.2), steps=100, ap=math.nan))


def test_cells_are_compared_image_by_image(annotations_of: Any, tmp_path: Path) -> None:
    sizes = [(100, 100)] * 12
    truth = annotations_of(sizes, [[[10, 10, 50, 50, 0, 0]]] * 12)
    found = [
        {"image_id": int(i), "category_id": 2, "bbox": [10, 10, 40, 40], "score": 0.9}
        for i in truth.image_ids
    ]
    folder, cells = ComparisonFolder(tmp_path), []
    for mode, entries in (("cached", found), ("tuned", found[:2])):
        key = CellKey(heads="fpn", mode=mode, seed=0)
        folder.cell(key).mkdir(parents=True)
        (folder.cell(key) / "detections.json").write_text(json.dumps(entries))
        cells.append(CellResult(key=key, ap=1.0 if mode == "cached" else 0.2))
    (comparison,) = summarise(cells).compare("cached", "tuned")
    report = compare_on_images(comparison, folder=folder, annotations=truth, resamples=50)
    assert report is not None
    assert report.tells_apart
    assert report.first.ap.value == pytest.approx(1.0)
    assert report.difference.ap.value > 0.5
    (folder.cell(cells[0].key) / "detections.json").unlink()
    again = compare_on_images(comparison, folder=folder, annotations=truth, resamples=50)
    assert again is None

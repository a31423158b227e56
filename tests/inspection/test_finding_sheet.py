from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cachedet.errors import InputError
from cachedet.inspection.annotated_set import read_annotated
from cachedet.inspection.finding import Finding
from cachedet.inspection.finding_sheet import draw_sheet

NAMES = [f"{number}.png" for number in range(6)]
BOXES = [(image, 1 + image % 2, (10, 10, 40, 30)) for image in range(6)]


def test_a_sheet_of_every_kind_of_finding(data: Any) -> None:
    """Wider sections have a line of their own, narrow ones stand in pairs; the sample is last."""
    shutil.copy(data.images / "0.png", data.images / "copy.png")
    (data.images / "bad.png").write_bytes(b"")
    names = [*NAMES, "copy.png", "bad.png"]
    boxes = [*BOXES, *[(image, 1, (120, 80, 60, 60)) for image in range(5)], (5, 2, (9, 9, 0, 1))]
    annotations = data.write("a.json", names, boxes)
    report = data.check(annotations, val=annotations, out=data.root / "sheet.png")
    assert report.sheet == data.root / "sheet.png"
    with Image.open(report.sheet) as sheet:
        assert sheet.size[0] == 1310
        assert sheet.size[1] > 1200
        assert sheet.info["Comment"] == "drawn by cachedet check"
        pixels = np.asarray(sheet)
    for colour in ((200, 40, 40), (200, 130, 0), (90, 90, 90)):  # bars of the ranks, in order
        assert (pixels[:, 12] == colour).all(axis=1).any(), colour
    assert data.check(annotations, out=report.sheet).sheet == report.sheet, "ours: replaced"


def test_boxes_far_outside_are_drawn_on_a_margin(data: Any) -> None:
    path = data.write("a.json", NAMES[:1], [(0, 1, (120, 40, 30, 30)), (0, 1, (1e12, 0, 9, 9))])
    one = read_annotated(
        "train", annotations=path, images=data.images, rotated="refuse", follow_links=False
    )
    finding = Finding(
        rank="look at",
        kind="partly outside",
        text="one",
        places=one.places_of_boxes(np.array([True, True])),
    )
    heights = []
    for findings in ([finding], []):
        with Image.open(io.BytesIO(draw_sheet(findings, [one]))) as sheet:
            heights.append(sheet.height)
    assert heights[0] > heights[1]


def test_what_is_no_sheet_is_never_replaced(data: Any) -> None:
    """Said before any image is read."""
    annotations = data.write("a.json", NAMES, BOXES)
    mine = data.images / "0.png"
    before = mine.read_bytes()
    with pytest.raises(InputError, match="is there already and is not a sheet of `check`"):
        data.check(Path("nowhere.json"), out=mine)
    assert mine.read_bytes() == before
    assert not data.check(annotations).stops


def test_without_any_image(data: Any) -> None:
    report = data.check(data.root / "none.json", out=data.root / "sheet.png")
    assert report.stops
    with Image.open(data.root / "sheet.png") as sheet:
        assert sheet.size[0] == 1310

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cachedet.drawing.contact_sheet import SheetRow, contact_sheet
from cachedet.drawing.image_drawing import Drawing

EMPTY = Drawing(boxes=np.zeros((0, 4)), labels=np.zeros(0, dtype=np.int64), captions=())


def drawing(*boxes: list[float], caption: str = "") -> Drawing:
    return Drawing(
        boxes=np.array(boxes), labels=np.arange(len(boxes)), captions=tuple(caption for _ in boxes)
    )


def test_sheet_holds_portraits_and_landscapes(tmp_path: Path) -> None:
    rows = [
        SheetRow(
            name=f"{n}.jpg",
            pixels=np.full((80 + 60 * n, 140, 3), 200, dtype=np.uint8),
            annotations=drawing([5, 5, 50, 50], caption="cat"),
            prediction=EMPTY,
        )
        for n in range(3)
    ]
    contact_sheet(rows, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 300
        assert sheet.height > 300 + 250

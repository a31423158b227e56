from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cachedet.evaluation.plots import (
    Drawing,
    SheetRow,
    colour_of,
    contact_sheet,
    draw_boxes,
    plot_training,
)

EMPTY = Drawing(boxes=np.zeros((0, 4)), labels=np.zeros(0, dtype=np.int64), captions=())


def drawing(*boxes: list[float], caption: str = "") -> Drawing:
    return Drawing(
        boxes=np.array(boxes), labels=np.arange(len(boxes)), captions=tuple(caption for _ in boxes)
    )


def test_outlines_have_the_colour_of_their_class() -> None:
    grey = np.full((100, 200, 3), 128, dtype=np.uint8)
    image = np.asarray(draw_boxes(grey, drawing([20, 30, 80, 90], [100, 30, 160, 90])))
    assert tuple(image[60, 20]) == colour_of(0)
    assert tuple(image[60, 100]) == colour_of(1)
    assert tuple(image[60, 50]) == (128, 128, 128)
    np.testing.assert_array_equal(grey, 128)  # law L8: the input is not drawn on


def test_captions_stay_inside() -> None:
    black = np.zeros((60, 90, 3), dtype=np.uint8)
    for box in ([80.0, 0, 89, 10], [0.0, 50, 10, 59], [-20.0, -20, 200, 200]):
        image = np.asarray(draw_boxes(black, drawing(box, caption="wallaby é 0.98")))
        assert image.shape == (60, 90, 3)
        filled = (image == colour_of(0)).all(axis=2)
        assert filled.sum() > 200


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


def test_curves_of_a_run(tmp_path: Path) -> None:
    header = "step,epoch,lr,loss,loss_class,loss_box,waiting_share,val_ap,val_ap50\n"
    rows = "1,0,0.1,2,1,1,0.1,,\n20,0,0.1,1,0.5,0.5,{},,\n20,1,,,,,,0.3,0.6\n"
    images = []
    for share in ("0", "0.4"):
        (tmp_path / "metrics.csv").write_text(header + rows.format(share))
        plot_training(tmp_path / "metrics.csv", tmp_path / "training.png")
        with Image.open(tmp_path / "training.png") as image:
            assert image.size == (960, 1080)
            images.append(np.asarray(image.convert("L")))
    differs = np.flatnonzero((images[0] != images[1]).any(axis=1))
    assert differs.min() > 0.8 * 1080  # only the lowest panel shows the wait


def test_curves_of_a_run_of_an_older_release_or_without_a_step(tmp_path: Path) -> None:
    for text in ("step,epoch,lr,loss,loss_class,val_ap\n1,0,0.1,2,2,\n", "step,epoch,lr,loss\n"):
        (tmp_path / "metrics.csv").write_text(text)
        plot_training(tmp_path / "metrics.csv", tmp_path / "training.png")
        with Image.open(tmp_path / "training.png") as image:
            assert image.size == (960, 1080)

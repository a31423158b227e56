from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cachedet.evaluation.plots import plot_training


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

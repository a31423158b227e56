from __future__ import annotations

from pathlib import Path

import pytest

from cachedet.errors import CheckpointError
from cachedet.training.records import MetricsLog

COLUMNS = ("step", "epoch", "loss", "val_ap")


def test_a_resumed_log_has_no_row_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    with MetricsLog(path, COLUMNS) as log:
        for step in (1, 20, 40):
            log.append({"step": step, "epoch": 0, "loss": step / 2})
    with MetricsLog(path, COLUMNS, keep_until_step=20) as log:
        log.append({"step": 40, "epoch": 0, "loss": 9.5})
        assert path.read_text().splitlines() == [
            "step,epoch,loss,val_ap", "1,0,0.5,", "20,0,10.0,", "40,0,9.5,",
        ]  # fmt: skip


def test_a_validation_that_will_be_made_again_is_dropped(tmp_path: Path) -> None:
    """Killed between the row of a validation and the checkpoint after it."""
    path = tmp_path / "metrics.csv"
    with MetricsLog(path, COLUMNS) as log:
        log.append({"step": 5, "epoch": 1, "val_ap": 0.25})
        log.append({"step": 10, "epoch": 2, "val_ap": 0.5})
    with MetricsLog(path, COLUMNS, keep_until_step=10, keep_until_epoch=1):
        assert path.read_text().splitlines()[1:] == ["5,1,,0.25"]


def test_a_file_of_fewer_columns_gets_the_others(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,val_ap\n7,1,0.5\n")
    with MetricsLog(path, COLUMNS, keep_until_step=7, keep_until_epoch=1):
        assert path.read_text().splitlines() == ["step,epoch,loss,val_ap", "7,1,,0.5"]


def test_unknown_columns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    with MetricsLog(path, COLUMNS) as log, pytest.raises(ValueError, match="not in field"):
        log.append({"step": 1, "accuracy": 2})
    with pytest.raises(CheckpointError, match=r"has columns .*'val_ap'\], expected \['step', 'ep"):
        MetricsLog(path, ("step", "epoch"))

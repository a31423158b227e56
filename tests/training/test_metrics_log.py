from __future__ import annotations

from pathlib import Path

import pytest

from cachedet.errors import CheckpointError
from cachedet.training.metrics_log import MetricsLog


def test_a_resumed_log_has_no_row_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    with MetricsLog(path, ("step", "loss")) as log:
        for step in (1, 20, 40):
            log.append({"step": step, "loss": step / 2})
    with MetricsLog(path, ("step", "loss"), keep_until_step=20) as log:
        log.append({"step": 40, "loss": 9.5})
        assert path.read_text().splitlines() == ["step,loss", "1,0.5", "20,10.0", "40,9.5"]


def test_unknown_columns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    with MetricsLog(path, ("step", "loss")) as log, pytest.raises(ValueError, match="not in field"):
        log.append({"step": 1, "accuracy": 2})
    with pytest.raises(
        CheckpointError, match=r"has columns \['step', 'loss'\], expected \['step'\]"
    ):
        MetricsLog(path, ("step",))

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from cachedet.errors import CheckpointError
from cachedet.training.records import EpochFigures, EpochTable, MetricsLog

COLUMNS = ("step", "epoch", "loss", "val_ap")


def test_a_resumed_log_has_no_row_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    with closing(MetricsLog(path, COLUMNS)) as log:
        for step in (1, 20, 40):
            log.append({"step": step, "epoch": 0, "loss": step / 2})
    with closing(MetricsLog(path, COLUMNS, keep_until_step=20)) as log:
        log.append({"step": 40, "epoch": 0, "loss": 9.5})
        assert path.read_text().splitlines() == [
            "step,epoch,loss,val_ap", "1,0,0.5,", "20,0,10.0,", "40,0,9.5,",
        ]  # fmt: skip


def test_a_validation_that_will_be_made_again_is_dropped(tmp_path: Path) -> None:
    """Killed between the row of a validation and the checkpoint after it."""
    path = tmp_path / "metrics.csv"
    with closing(MetricsLog(path, COLUMNS)) as log:
        log.append({"step": 5, "epoch": 1, "val_ap": 0.25})
        log.append({"step": 10, "epoch": 2, "val_ap": 0.5})
    with closing(MetricsLog(path, COLUMNS, keep_until_step=10, keep_until_epoch=1)):
        assert path.read_text().splitlines()[1:] == ["5,1,,0.25"]


def test_unknown_columns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    with closing(MetricsLog(path, COLUMNS)) as log, pytest.raises(ValueError, match="not in field"):
        log.append({"step": 1, "accuracy": 2})
    with pytest.raises(CheckpointError, match=r"has columns .*'val_ap'\], expected \['step', 'ep"):
        MetricsLog(path, ("step", "epoch"))


MASKED = ("rpn_class", "rpn_box", "class", "box", "mask")


def figures(**changes: object) -> EpochFigures:
    values: dict[str, object] = {
        "epoch": 3,
        "epochs": 72,
        "learning_rate": 0.0012,
        "losses": {"loss": 1.25, "loss_class": 1.0, "loss_box": 0.25},
        "ap": 0.3333,
        "ap50": 0.7,
        "images_per_second": 123.4,
        "waiting_share": 0.034,
    }
    return EpochFigures(**{**values, **changes})


def test_by_hand() -> None:
    table = EpochTable(("class", "box"), width=80)
    assert table.lines(figures()) == [
        "  epoch       lr    loss   class     box     AP   AP50    img/s  wait",
        "   3/72  1.2e-03   1.250   1.000   0.250  0.333  0.700    123.4    3%",
    ]
    assert table.lines(figures(epoch=4, ap=None, ap50=None)) == [
        "   4/72  1.2e-03   1.250   1.000   0.250      -      -    123.4    3%"
    ]


@pytest.mark.parametrize(
    ("parts", "width"), [(("class", "box"), 80), (MASKED[:4], 100), (MASKED, 120)]
)
def test_fits_and_lines_up(parts: tuple[str, ...], width: int) -> None:
    table = EpochTable(parts, width=width)
    losses = {"loss": 12345.6, **{f"loss_{name}": 1234.5 for name in parts}}
    header, line = table.lines(
        figures(losses=losses, epoch=600, epochs=600, images_per_second=98765.0, waiting_share=1)
    )
    assert len(header) == len(line) <= width
    assert all(name in header for name in parts)
    for end in range(1, len(header)):  # columns are right-aligned: words end together
        if header[end - 1] != " " and header[end] == " ":
            assert line[end - 1] != " "
            assert line[end] == " "


def test_a_narrow_terminal_gets_the_total_only() -> None:
    header, line = EpochTable(MASKED, width=80).lines(figures())
    assert len(header) == len(line) <= 60
    assert "mask" not in header


def test_the_header_comes_again() -> None:
    table = EpochTable(("class", "box"), width=80)
    counts = [len(table.lines(figures())) for _ in range(60)]
    assert [index for index, count in enumerate(counts) if count == 2] == [0, 25, 50]

from __future__ import annotations

from pathlib import Path

import pytest

from cachedet.errors import CheckpointError
from cachedet.training.records import EpochFigures, EpochTable, TensorBoardLog

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


def test_events_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(CheckpointError, match="cannot write .*tensorboard: "):
        TensorBoardLog(tmp_path / "tensorboard", first_step=1)

"""What a person reads of a comparison at a terminal of 80 columns."""

from __future__ import annotations

import math
import re

import pytest

from cachedet.commands.comparison_tables import print_cell, print_summary
from cachedet.comparison.cautions import Caution
from cachedet.comparison.results import CellKey, CellResult
from cachedet.comparison.summary import summarise
from cachedet.live.mode_names import Mode


def made(heads: str, mode: Mode, seed: int, ap: float, *, error: str = "") -> CellResult:
    return CellResult(
        key=CellKey(heads=heads, mode=mode, seed=seed),
        error=error,
        ap=ap,
        low=ap - 0.02,
        high=ap + 0.03,
        seconds=1234.4,
        peak_memory=987_600_000,
        step_flops=2_340_000_000,
    )


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    return [line.rstrip() for line in lines]


def test_rows_stand_in_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_cell(made("a_b", "cached", 0, 0.5), 1, 48)
    print_cell(made("retinanet_fpn_tiny", "partial_C4", 1, math.nan), 48, 48)
    first, second = lines_of(capsys)
    assert first.split() == [
        "1/48", "a_b", "cached", "seed", "0", "AP", "0.500", "0.480-0.530", "1,234", "s", "988",
        "MB",
    ]  # fmt: skip
    assert second.split()[:7] == ["48/48", "retinanet_fpn_tiny", "partial_C4", "seed", "1", "AP",
                                  "-"]  # fmt: skip
    assert len(first) == len(second) == 80
    assert first.index("cached") == second.index("partial_C4")


@pytest.mark.parametrize(
    ("heads", "mode", "seed"),
    [
        ("heads" * 10, "scratch", 0),
        ("cascade_rcnn_nasfpn_tiny", "partial_C4", 0),
        ("fpn", "partial_L11", 0),
        ("fpn", "cached", 123_456),
    ],
)
def test_no_name_is_cut(
    heads: str, mode: Mode, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    print_cell(made("fpn", "cached", 0, 0.5), 1, 2)
    print_cell(made(heads, mode, seed, 0.5), 2, 2)
    row, names, figures = lines_of(capsys)
    assert names == f"2/2 {heads} {mode} seed {seed}"
    assert figures == row[row.index("AP") :].rjust(80)


def test_a_failed_run_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    print_cell(made("fpn", "tuned", 1, 0.5, error="[bold]no memory[/bold]"), 2, 4)
    row, reason = lines_of(capsys)
    assert row.split() == ["2/4", "fpn", "tuned", "seed", "1", "failed"]
    assert reason == "failed: [bold]no memory[/bold]"  # brackets are no markup


def test_the_summary_has_means_and_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [
        *(made("fpn", "cached", seed, ap) for seed, ap in enumerate((0.50, 0.52))),
        *(made("fpn", "live", seed, ap) for seed, ap in enumerate((0.50, 0.51))),
        *(made("fpn", "tuned", seed, ap) for seed, ap in enumerate((0.60, 0.62))),
        made("a_longer_name_than_any_column", "cached", 0, 0.7),
        made("a_longer_name_than_any_column", "tuned", 0, 0.4, error="[no] memory"),
    ]
    print_summary(summarise(cells), [Caution(kind="still rising", text="Too early to tell.")])
    lines = lines_of(capsys)
    table = [re.split(r"  +", line.strip()) for line in lines[1:9]]
    assert table == [
        ["AP", "lowest", "highest", "against tuned", "seeds", "time s", "MB", "GFLOP"],
        ["fpn"],  # names stand on lines of their own: nothing cuts them
        ["cached", "0.510", "0.500", "0.520", "-0.100", "2", "1,234", "988", "2.34"],
        ["live", "0.505", "0.500", "0.510", "-0.105", "2", "1,234", "988", "2.34"],
        ["tuned", "0.610", "0.600", "0.620", "-", "2", "1,234", "988", "2.34"],
        ["a_longer_name_than_any_column"],
        ["cached", "0.700", "0.680", "0.730", "-", "1", "1,234", "988", "2.34"],
        ["tuned", "-", "-", "-", "-", "0", "-", "-", "-"],
    ]
    text = " ".join(lines)
    assert "lowest, highest: of the seeds; of a single seed, its 95 % interval" in text
    assert "against tuned: AP minus that of the same heads fine-tuned" in text
    assert "and image. Too early to tell. The best mean AP" in text
    assert "The best mean AP is 0.700: cached with a_longer_name_than_any_column (one seed" in text
    assert "fpn: cached 0.510 is 0.100 below fine-tuned 0.610" in text
    assert (
        "a_longer_name_than_any_column: cached and fine-tuned have no scored seed in common."
        in text
    )
    assert "fpn: they agree." in text
    assert "failed: a_longer_name_than_any_column-tuned-0: [no] memory" in text


def test_one_heads_is_judged_once(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [made("fpn", mode, seed, 0.5) for mode in ("cached", "tuned") for seed in (0, 1)]  # type: ignore[arg-type]
    print_summary(summarise(cells))
    text = " ".join(lines_of(capsys))
    assert text.count("is level with fine-tuned 0.500") == 1
    assert "Cached against live" not in text

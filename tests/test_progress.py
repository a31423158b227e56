from __future__ import annotations

import pytest

from cachedet.progress import StageProgress, format_seconds


def test_a_log_file_gets_a_last_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with StageProgress("extract", total=10, unit="pictures", done=4) as progress:
        progress.advance(3, nbytes=5_000_000, note="loss 0.5")
        assert "left, ends" in progress.status()
        progress.advance(3)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("extract: 10/10  ")
    for part in ("pictures/s", "MB/s", "loss 0.5", "gone"):
        assert part in output.err


def test_seconds() -> None:
    assert [format_seconds(s) for s in (0.4, 75, 3700)] == ["0:00", "1:15", "1:01:40"]


def test_the_detail_is_kept_and_unplanned_work_raises_the_total(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with StageProgress("extract", total=2, unit="pictures") as progress:
        progress.advance(2, detail="decode 9/s; slowest: decode")
        progress.advance(1)
    assert progress.total == 3
    output = capsys.readouterr().err
    assert "extract: 3/3  " in output
    assert "(decode 9/s; slowest: decode)" in output
    assert progress.nbytes == 0

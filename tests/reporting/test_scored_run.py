"""What a run folder tells; whole reports are in tests/test_report.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachedet.reporting.scored_run import _names, _sum_sessions, read_metrics


def test_pauses_between_stretches_of_training_do_not_count(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text(
        "2026-01-01 10:00:00 started; store fingerprint 48\n"
        "2026-01-01 10:05:00   1/4 ...\n"
        "2026-01-02 09:00:00 resumed at step 100\n"
        "a line without a time\n"
        "2026-99-99 99:99:99 torn\n"
        "2026-01-02 09:01:30 ended at step 200: finished\n"
    )
    assert _sum_sessions(log) == 5 * 60 + 90


@pytest.mark.parametrize("text", [None, "", "no times here\n", "2026-01-01 10:00:00 other\n"])
def test_training_time_that_is_not_recorded(tmp_path: Path, text: str | None) -> None:
    log = tmp_path / "log.txt"
    if text is not None:
        log.write_text(text)
    assert _sum_sessions(log) is None


def test_rows_of_metrics_that_a_crash_cut_short_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,val_ap\n20,1.5,\n40,nan,0.25\n6")
    first, second, third = read_metrics(path)
    assert (first.step, first.loss, first.val_ap) == (20, 1.5, None)
    assert (second.loss, second.val_ap) == (None, 0.25)
    assert (third.step, third.loss) == (6, None)
    path.write_text("step,loss\nx,1\n")
    assert read_metrics(path) == ()
    path.write_bytes(b'step,loss\n1,2\n\xff\xfe,3\n\0\0\0\n"4,5\n' + b"9" * 200_000)
    assert [point.step for point in read_metrics(path)][:1] == [1]
    assert read_metrics(tmp_path / "missing.csv") == ()


def test_runs_are_named_by_as_little_of_their_path_as_it_takes() -> None:
    assert _names([Path("/a/one"), Path("/a/two")]) == ["one", "two"]
    assert _names([Path("/a/run"), Path("/b/run"), Path("/b/x")]) == ["a/run", "b/run", "b/x"]

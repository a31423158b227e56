from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import pytest

from cachedet.progress import StageProgress, count_of, format_seconds, is_shown, show_progress


@pytest.fixture
def _shown() -> Iterator[None]:
    with show_progress():
        yield


looked_at = pytest.mark.usefixtures("_shown")


def work_and_log() -> None:
    with StageProgress("extract", total=2, unit="images") as progress:
        progress.advance(2)
    logging.getLogger("cachedet.anywhere").info("for %s", "a person")
    logging.getLogger("cachedet.anywhere").debug("for a developer")
    logging.getLogger("elsewhere").info("for others")


def test_the_library_shows_nothing_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_shown()
    work_and_log()
    assert capsys.readouterr() == ("", "")


@looked_at
def test_what_is_asked_for_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert is_shown()
    work_and_log()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("extract: 2/2  ")
    assert err.splitlines()[1:] == ["for a person"]


@looked_at
def test_a_log_file_gets_a_last_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with StageProgress("extract", total=10, unit="images", done=4) as progress:
        progress.advance(3, nbytes=5_000_000, note="loss 0.5")
        progress.advance(3)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("extract: 10/10  ")
    for part in ("images/s", "MB/s", "loss 0.5", "gone"):
        assert part in output.err


@looked_at
def test_nothing_is_said_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """The last unit's line, and the end in the same second."""
    now = itertools.chain((0.0, 0.0), itertools.repeat(20.0))
    with StageProgress("extract", total=1, unit="images", clock=lambda: next(now)) as progress:
        progress.advance(1)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_seconds() -> None:
    assert [format_seconds(s) for s in (0.4, 75, 3700)] == ["0:00", "1:15", "1:01:40"]


@looked_at
def test_the_detail_is_kept_and_unplanned_work_raises_the_total(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with StageProgress("extract", total=2, unit="images") as progress:
        progress.advance(2, detail="decode 9/s; slowest: decode")
        progress.advance(1)
    assert progress.total == 3
    output = capsys.readouterr().err
    assert "extract: 3/3  " in output
    assert "(decode 9/s; slowest: decode)" in output
    assert progress.nbytes == 0


@looked_at
def test_what_others_did_is_no_work_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    with StageProgress("extract", total=9, unit="images") as progress:
        progress.advance(4)
        progress.settle("5 more images by other writers")
    output = capsys.readouterr().err
    assert output.startswith("extract: 4/4  ")
    assert "5 more images by other writers" in output


@looked_at
def test_the_end_promises_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the work stopped before its end."""
    now = iter(range(0, 900, 9))
    with StageProgress("extract", total=9, unit="images", clock=lambda: next(now)) as progress:
        progress.advance(2)
        progress.advance(2)
        assert "left, ends" in progress.status()
    assert "left, ends" not in capsys.readouterr().err.splitlines()[-1]


def test_no_end_is_forecast_from_the_first_slow_units() -> None:
    """The warm-up is left out of the rate."""
    now = 0.0
    with StageProgress("train", total=100, unit="steps", clock=lambda: now) as progress:
        progress.advance(1)
        now = 20.0  # seconds of one step
        progress.advance(1)
        assert "left" not in progress.status()
        for second in (21.0, 22.0, 23.0, 24.0):
            now = second
            progress.advance(2)
        assert "left" not in progress.status()
        now = 25.0
        progress.advance(2)
        assert progress.status().startswith("2.0 steps/s  0:25 gone  0:44 left, ends ")


def test_a_note_is_shown_though_nothing_was_done() -> None:
    with StageProgress("extract", total=9, unit="images") as progress:
        progress.note("waiting for another machine")
        assert "waiting for another machine" in progress.status()
        progress.note("")
        assert "waiting" not in progress.status()


def test_counts() -> None:
    assert [count_of(n, "block") for n in (0, 1, 2)] == ["0 blocks", "1 block", "2 blocks"]


def test_a_line_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left to do stays longest, with what the work says of itself."""
    now = [0.0]
    progress = StageProgress("train", total=520, unit="steps", clock=lambda: now[0])
    for _ in range(3):
        now[0] += 6.0
        progress.advance(12, nbytes=10**7, note="loss 1.234")
    whole = progress.status()
    for part in ("2.0 steps/s", "MB/s", "loss 1.234", "0:18 gone", "4:02 left, ends "):
        assert part in whole
    assert progress.status(most=len(whole)) == whole
    for most, gone in ((60, "MB/s"), (44, "ends"), (33, "gone"), (22, "steps/s")):
        line = progress.status(most=most)
        assert len(line) <= most
        assert gone not in line
        assert "loss 1.234  4:02 left" in line or "4:02 left" in line

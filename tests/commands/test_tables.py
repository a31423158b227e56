"""What is printed where names are hostile, and terminals narrow or without UTF-8."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cachedet.cli import main
from cachedet.commands import tables
from cachedet.commands.comparison_tables import print_cell, print_summary
from cachedet.commands.score_tables import print_scores
from cachedet.commands.trainings import print_training
from cachedet.comparison.results import CellKey, CellResult
from cachedet.comparison.summary import summarise
from cachedet.errors import BadImageError, CachedetError
from cachedet.evaluation.metrics import ClassScore, CocoScores
from cachedet.progress import StageProgress, show_progress
from cachedet.train import TrainReport

HOSTILE = "x\x1b[31m\x9b2J\r\n\u202e[bold]y[/] [link=z] :cat: 猫é" + os.fsdecode(b"\xe9")
RAW = ("\x1b", "\x9b", "\r", "\u202e")


@dataclass(frozen=True)
class Printed:
    status: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Printed]:
    """`cachedet WORDS` in this process, with streams of an encoding."""

    def call(*words: object, encoding: str = "utf-8") -> Printed:
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        monkeypatch.setattr(sys, "argv", ["cachedet", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        texts = []
        for stream in streams:
            stream.flush()
            texts.append(stream.buffer.getvalue().decode(encoding))  # type: ignore[attr-defined]
        monkeypatch.undo()
        assert "Traceback" not in texts[1]
        assert not [raw for raw in RAW for text in texts if raw in text]
        return Printed(int(left.value.code or 0), *texts)

    return call


@pytest.fixture
def odd_store(tiny: Any, tmp_path: Path) -> Path:
    """A store at the longest path of the worst characters."""
    folder = tmp_path / HOSTILE.replace("/", "_") / ("n" * 150)
    folder.mkdir(parents=True)
    (folder / "s.zarr").symlink_to(tiny.val)
    return folder / "s.zarr"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_paths_stand_escaped_on_one_line(run: Any, odd_store: Path, encoding: str) -> None:
    printed = run("verify", odd_store, encoding=encoding)
    assert printed.status == 0
    (line,) = printed.out.splitlines()
    assert r"x\x1b[31m\x9b2J\r\n\u202e[bold]y[_] [link=z] :cat: " in line
    assert f"\\xe9/{'n' * 150}/s.zarr: " in line
    for words in (["info", odd_store], ["info", odd_store / "none"]):
        printed = run(*words, encoding=encoding)
        assert printed.status == (0 if len(words[1].name) > 4 else 1)
        assert f"{'n' * 150}/" in printed.out + printed.err


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_json_is_ascii_everywhere(run: Any, odd_store: Path, encoding: str) -> None:
    printed = run("verify", odd_store, "--json", encoding=encoding)
    assert printed.out.isascii()
    assert json.loads(printed.out)["blocks"] > 0


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["configs", "show", HOSTILE], 1, "error: expected the name of a preset, got "),
        (["train-heads", HOSTILE, "--train", "a", "--run", "b"], 1, "error: expected the path of"),
        (["info", HOSTILE], 1, "is not a feature store"),
        (["info", "a", HOSTILE], 2, r"unexpected extra argument(s) (x\x1b[31m"),
        ([HOSTILE], 2, "error: No such command 'x"),
        (["extract", "--image-size", HOSTILE], 2, "error: Invalid value for '--image-size'"),
        (["info", f"--{HOSTILE}"], 2, "error: No such option: --x"),
    ],
)
def test_errors_are_plain_lines(run: Any, words: list[str], status: int, message: str) -> None:
    for encoding in ("utf-8", "ascii"):
        printed = run(*words, encoding=encoding)
        assert printed.status == status
        assert message in printed.err
        *usage, error = printed.err.splitlines()
        assert error.startswith("error: ")
        assert len(usage) == (2 if status == 2 else 0)
        assert printed.out == ""


def test_usage_errors_do_not_break_paths(run: Any) -> None:
    path = "/".join(["a_rather_long_folder"] * 12)
    assert path in run("info", "store", path).err


def test_lines_of_an_error_are_its_own(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line break in a name begins no line; those of a list of images do."""

    def fail(*_: object) -> None:
        raise BadImageError("2 images cannot be used:", "  a\nerror: b", "  c")

    monkeypatch.setattr("cachedet.store.verify.describe_store", fail)
    words = ["info", "x"]
    monkeypatch.setattr(sys, "argv", ["cachedet", *words])
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit):
        main()
    assert err.getvalue() == "error: 2 images cannot be used:\n  a\\nerror: b\n  c\n"
    assert str(CachedetError("a", "b")) == "a\nb"


def scores_of(*names: str) -> CocoScores:
    figures = dict.fromkeys(
        ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100",
         "ar_small", "ar_medium", "ar_large"), 0.5,
    )  # fmt: skip
    classes = tuple(
        ClassScore(category_id=n, name=name, num_boxes=3, ap=0.5, ap50=0.5)
        for n, name in enumerate(names)
    )
    return CocoScores(**figures, per_class=classes, num_images=1, num_detections=1)


@pytest.mark.parametrize("width", [20, 80])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_tables_of_any_names_and_widths(
    encoding: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    monkeypatch.setattr(tables.console, "_width", width)  # COLUMNS counts when it is made
    monkeypatch.setattr(sys, "stdout", stream)
    long = ["n" * 300, "n" * 299 + "m"]
    print_scores(scores_of(HOSTILE, "[bold]y[/] :cat:", *long), of="boxes")
    stream.flush()
    text = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert not [raw for raw in RAW if raw in text]
    if encoding == "utf-8" or width == 80:  # else rich's sign of what is cut takes more
        assert max(map(len, text.splitlines())) <= width
    if width == 80:
        assert "[bold]y[/] :cat:" in text
        assert "\n│ nnn" in text or "\n| nnn" in text


def test_names_with_one_prefix_stay_distinct_in_tables(capsys: pytest.CaptureFixture[str]) -> None:
    print_scores(scores_of("n" * 300, "n" * 299 + "m"), of="boxes")
    rows = [line for line in capsys.readouterr().out.splitlines() if "nnnn" in line]
    assert len(set(rows)) == len(rows) == 2


def test_colours_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, expected in (({}, True), ({"NO_COLOR": "1"}, False)):
        stream = io.StringIO()
        console = Console(
            file=stream, force_terminal=True, markup=False, color_system="256",
            _environ={"TERM": "xterm", **variable},
        )  # fmt: skip
        monkeypatch.setattr("cachedet.commands.score_tables.console", console)
        print_scores(scores_of("cat"), of="boxes")
        assert ("\x1b[3" in stream.getvalue()) or not expected


def made(heads: str, *, error: str = "") -> CellResult:
    return CellResult(
        key=CellKey(heads=heads, mode="cached", seed=0), error=error, ap=0.5, low=0.4, high=0.6,
        seconds=1.0, peak_memory=10**6, step_flops=10**6,
    )  # fmt: skip


def test_comparisons_of_hostile_names(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/".join(["a_rather_long_folder"] * 12)
    cells = [made(HOSTILE), made("b", error=f"no \x1b {path} [bold]")]
    for number, cell in enumerate(cells):
        print_cell(cell, number, 2)
    print_summary(summarise(cells))
    text = capsys.readouterr().out
    assert not [raw for raw in RAW if raw in text]
    assert text.count(rf"no \x1b {path} [bold]") == 2


def test_progress_and_logs_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    with show_progress():
        with StageProgress("load", total=1, unit="images") as progress:
            progress.advance(note=HOSTILE, detail=HOSTILE)
        logging.getLogger("cachedet.x").info("skipped %s", HOSTILE)
    err = capsys.readouterr().err
    assert not [raw for raw in RAW if raw in err]
    assert len(err.splitlines()) == 2
    assert err.count("[bold]y[/] [link=z] :cat:") == 3


def test_say_prose_wraps_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    tables.say_prose("word " * 30 + "n" * 100)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "n" * 100
    assert max(map(len, lines[:-1])) <= 80


def test_a_training_says_what_this_call_did(capsys: pytest.CaptureFixture[str]) -> None:
    report = TrainReport(
        run=Path("run"), images=8, views={"base": 1.0}, steps=156, epochs=6, reason="finished",
        seconds=12.0, seconds_per_epoch=4.0, step_seconds_per_epoch=2.5, step_seconds=7.5,
        peak_memory=2_000_000_000, parameters=7, best_ap=0.005, losses=(1.0,) * 30,
    )  # fmt: skip
    print_training(report)
    first, second = capsys.readouterr().out.splitlines()
    assert "156 steps, 30 of them by this call, 6 epochs, in 12 s" in first
    assert second.startswith("AP is low after 156 steps: more epochs (--set schedule.epochs=...)")
    print_training(replace(report, steps=30, best_ap=0.4))
    (line,) = capsys.readouterr().out.splitlines()
    assert "30 steps, 6 epochs, in 12 s" in line

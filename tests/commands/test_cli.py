"""The command line before any command runs: help, completion, what it imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cachedet.cli import app, run_app
from cachedet.commands.usage import OTHER_OPTIONS, OTHER_VERBS

COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]


def run_installed(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`cachedet WORDS` as its entry point runs it, then the heavy modules that were imported."""
    script = (
        "import atexit, sys\nfrom cachedet.cli import main\n"
        "heavy = {'torch', 'zarr', 'timm', 'numpy', 'pydantic'}\n"
        "atexit.register(lambda: print('imported', *heavy & sys.modules.keys(), file=sys.stderr))\n"
        f"sys.argv = ['cachedet', *{list(words)!r}]\nmain()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS), ["configs", "show"]])
def test_short_and_long_help_are_one(words: list[str]) -> None:
    short, long = (CliRunner().invoke(app, [*words, option]) for option in ("-h", "--help"))
    assert short.exit_code == long.exit_code == 0
    assert short.output == long.output
    assert "Usage: " in short.output


def test_help_imports_nothing_heavy() -> None:
    done = run_installed("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)
    assert done.stderr == "imported\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_show_completion_prints_a_script(shell: str) -> None:
    """Else the parent process says which shell it is."""
    done = run_installed(
        "--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert done.returncode == 0
    assert f"_CACHEDET_COMPLETE=complete_{shell}" in done.stdout


def test_completion_knows_the_commands() -> None:
    done = run_installed(
        _CACHEDET_COMPLETE="complete_bash", COMP_WORDS="cachedet co", COMP_CWORD="1"
    )
    assert done.stdout.split() == ["copy", "compare", "convert", "configs"]


@pytest.mark.parametrize(
    ("words", "message"),
    [(["trainheads"], "No such command 'trainheads'"), (["--colour"], "No such option: --colour")],
)
def test_wrong_usage_has_status_2(words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("extract --image-size big", "Invalid value for '--image-size': expected a whole number"),
        ("estimate --seconds soon", "Invalid value for '--seconds': expected a number"),
        ("sweep c --trials 0", "Invalid value for '--trials': expected at least 1"),
        ("detect run a.jpg", "No such command 'detect'; it is `cachedet predict`"),
        ("train c", "No such command 'train'; it is `cachedet train-heads`"),
        (
            "train-heads c --epochs 3",
            "No such option: --epochs; it is a key of the config: --set schedule.epochs=...",
        ),
        (
            "sweep c --lr 3",
            "No such option: --lr; it is a key of the config: --set schedule.lr=...",
        ),
        ("train-heads c --store s", "No such option: --store; here it is --train"),
        ("eval r --val s", "No such option: --val; here it is --store"),
        (
            "train-heads c --train s --run r --set seed 3",
            "Got unexpected extra argument(s) (3); a key of the config is set as --set key=value, "
            "without a space",
        ),
        ("extract --imgsz 3", "No such option: --imgsz; here it is --image-size"),
        ("info --epochs 3", "No such option: --epochs"),
    ],
)
def test_wrong_usage_in_plain_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    monkeypatch.setattr("sys.argv", ["cachedet", *line.split()])
    with pytest.raises(SystemExit) as end:
        run_app()
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"


def test_every_verb_that_is_pointed_to_exists() -> None:
    assert {command.name for command in app.registered_commands} >= set(OTHER_VERBS.values())


@pytest.mark.parametrize(
    ("words", "name", "usual"),
    [("eval --run r", "run", "eval RUN"), ("predict r --source a", "source", "predict RUN IMAGES")],
)
def test_an_argument_written_as_an_option(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    name: str,
    usual: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["cachedet", *words.split()])
    with pytest.raises(SystemExit) as end:
        run_app()
    assert end.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    advice = f"error: No such option: --{name}; give it without the option's name: "
    assert message.startswith(advice)
    assert message.endswith(f" {usual}`")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "run", "a.jpg", "--out", ""], "--out expects a value, got an empty text"),
        (["extract", "--images", "i", "--annotations", "a", "--store="], "--store expects a value"),
        (["train-heads", "c", "--disk-cache", ""], "--disk-cache expects a value, got an empty"),
        (["info", ""], "an argument expects a value, got an empty text"),
        (["report", "run", ""], "an argument expects a value, got an empty text"),
    ],
)
def test_an_empty_text_is_not_the_current_folder(words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {message}")


@pytest.mark.parametrize(
    "words",
    [["train-heads", "x" * 300], ["eval", "x" * 300, "--store", "s"]],
    ids=["train-heads", "eval"],
)
def test_what_no_command_foresaw_of_a_file_is_one_message(words: list[str]) -> None:
    """The last net: names that a file system does not take."""
    options = ["--train", "t", "--run", "r"] if words[0] == "train-heads" else []
    done = CliRunner().invoke(app, [*words, *options])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_places_of_demo_and_estimate_are_looked_at_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    forecast = tmp_path / "s.zarr.estimate.json"
    forecast.write_text('{"store": "mine"}')
    estimate = ["estimate", "--images", "no", "--annotations", "no", "--store", "s.zarr"]
    for words, message in (
        (
            ["demo", "--out", "file/demo"],
            "file: is a file, not a folder; repair the cause, or choose an",
        ),
        (estimate, "s.zarr.estimate.json is there already and is not a forecast of `estimate`"),
    ):
        words = [str(tmp_path / word) if "/" in word or "zarr" in word else word for word in words]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 1
        assert message in done.stderr
    assert forecast.read_text() == '{"store": "mine"}'


def test_every_option_that_is_pointed_to_exists() -> None:
    group = get_command(app)
    options = {
        option
        for command in group.commands.values()  # type: ignore[attr-defined]
        for param in command.params
        for option in param.opts
    }
    pointed_to = {name for names in OTHER_OPTIONS.values() for name in names}
    assert options >= {f"--{name.replace('_', '-')}" for name in pointed_to}

"""What surrounds every command: signals while training starts, and output that nobody reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cachedet.commands.entry import _leave
from cachedet.errors import CheckpointError
from cachedet.train import train

# Sends itself a signal when a function of this name is called for the first time.
SEND = """
import os, signal, sys
def send_once(frame, event, argument):
    if event == "call" and frame.f_code.co_name == {function!r}:
        sys.setprofile(None)
        os.kill(os.getpid(), signal.{name})
sys.setprofile(send_once)
"""
DETECTOR = (
    "detector.neck.channels=8",
    "schedule.epochs=1",
    "detector.levels=[C4,C5]",
    "detector.neck.num_levels=2",
)


def words_of(tiny: Any, run: Path, *more: str) -> list[object]:
    changes = [word for change in DETECTOR for word in ("--set", change)]
    return [
        "train-heads", "retinanet_fpn_tiny", "--train", tiny.train, "--run", run, *changes, *more
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("SIGTERM", "load_config"),
        ("SIGHUP", "require_complete"),
        ("SIGINT", "write_config"),
        *(
            pytest.param(*case, marks=pytest.mark.thorough)
            for case in (
                ("SIGUSR1", "make_run_loader"),
                ("SIGTERM", "make_trainer"),
                ("SIGTERM", "write_config"),
            )
        ),
    ],
)
def test_a_signal_before_the_first_step(
    tiny: Any, nursery: Any, tmp_path: Path, name: str, function: str
) -> None:
    """Status 75, and the same command goes on, with and without --resume."""
    for more in ([], ["--resume"]):
        run = tmp_path / f"run{len(more)}"
        before = SEND.format(function=function, name=name)
        with nursery.start_command(words_of(tiny, run), before=before) as process:
            _, errors = process.communicate()
        assert process.returncode == 75, errors
        assert f"{name}: stopped; go on with\n  cachedet train-heads" in errors
        assert "stopped before the first step" in (run / "log.txt").read_text()
        assert not (run / "train.lock").exists()
        with nursery.start_command(words_of(tiny, run, *more)) as process:
            _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert (run / "weights" / "last.pt").is_file()


def test_a_signal_leaves_what_is_no_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log of somebody's, a link, a regular file; of --run given twice the last counts."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine" / "log.txt").write_text("my notes\n")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "log.txt").symlink_to(tmp_path / "file")
    first = tmp_path / "first"
    for name in ("mine", "linked", "file"):
        words = ["cachedet", "train-heads", "--run", str(first), f"--run={tmp_path / name}"]
        _leave("SIGTERM", words)
        assert "nothing can begin in that --run: choose another one" in capsys.readouterr().err
    assert (tmp_path / "mine" / "log.txt").read_text() == "my notes\n"
    assert (tmp_path / "file").read_text() == "mine"
    assert not first.exists()
    for _ in range(2):
        _leave("SIGTERM", ["cachedet", "train-heads", "--run", str(first)])
        assert "stopped; go on with" in capsys.readouterr().err
    assert (first / "log.txt").read_text().count("stopped before the first step") == 2


def test_a_signal_while_torch_is_imported(tiny: Any, tmp_path: Path) -> None:
    """Imports that are cut off raise errors of any kind."""
    run = tmp_path / "run"
    before = (
        "import os, signal, sys\n"
        "class Send:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch._C':\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Send())\n"
    )
    words = ["cachedet", *map(str, words_of(tiny, run))]
    script = f"{before}\nsys.argv = {words!r}\nfrom cachedet.__main__ import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 75, done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in run.iterdir()] == ["log.txt"]


def test_a_signal_in_the_first_validation(tiny: Any, nursery: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = words_of(tiny, run, "--val", str(tiny.val))
    before = SEND.format(function="detect_store", name="SIGHUP")
    with nursery.start_command(words, before=before) as process:
        _, errors = process.communicate()
    assert process.returncode == 75, errors
    assert "SIGHUP: saved; continue with" in errors
    with nursery.start_command([*words, "--resume"]) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors


def test_a_config_that_a_person_put_there_is_not_replaced(tiny: Any, tmp_path: Path) -> None:
    """Nor is a folder that is merely empty taken for a run that was begun."""
    run = tmp_path / "run"
    with pytest.raises(CheckpointError, match="is not a run folder"):
        train("retinanet_fpn_tiny", train_store=tiny.train, run=run, resume=True)
    run.mkdir()
    (run / "train.lock").touch()  # all that a process leaves which is killed at once
    with pytest.raises(CheckpointError, match="run holds no run yet; leave out --resume to begin"):
        train("retinanet_fpn_tiny", train_store=tiny.train, run=run, resume=True)
    (run / "train.lock").unlink()
    for log in (None, "my notes\n", "2026-11-28 16:00:00 stopped before the first step: SIGTERM\n"):
        (run / "config.yaml").write_text("mine: true\n")
        if log is not None:
            (run / "log.txt").write_text(log)
        changes = {"overrides": DETECTOR, "train_store": tiny.train}
        with pytest.raises(CheckpointError, match="exists already and is not empty"):
            train("retinanet_fpn_tiny", run=run, **changes)
        assert (run / "config.yaml").read_text() == "mine: true\n"


def test_training_goes_on_when_nobody_reads_its_output(
    tiny: Any, nursery: Any, tmp_path: Path
) -> None:
    """A pipe whose reader has gone, and a full disk."""
    run = tmp_path / "run"
    with nursery.start_command(words_of(tiny, run)) as process:
        process.stdout.close()
        process.stderr.close()
        assert process.wait() == 0
    assert "ended at step" in (run / "log.txt").read_text()
    if Path("/dev/full").exists():
        full = "import os\nfull = os.open('/dev/full', os.O_WRONLY)\n"
        full += "os.dup2(full, 1)\nos.dup2(full, 2)\n"
        with nursery.start_command(words_of(tiny, tmp_path / "full"), before=full) as process:
            assert process.wait() == 0
        assert "ended at step" in (tmp_path / "full" / "log.txt").read_text()


@pytest.mark.parametrize("words", [["configs"], ["info", "STORE", "--json"]])
def test_other_commands_whose_output_nobody_reads(
    tiny: Any, nursery: Any, words: list[str]
) -> None:
    words = [str(tiny.train) if word == "STORE" else word for word in words]
    wait = "import sys; sys.stdin.read()\n"  # until the reader has gone
    with nursery.start_command(words, before=wait) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.wait() == 141
        assert process.stderr.read() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_output_that_cannot_be_written_is_said(nursery: Any) -> None:
    full = "import os\nos.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
    with nursery.start_command(["configs"], before=full) as process:
        _, errors = process.communicate()
    assert (process.returncode, errors) == (
        1, "error: cannot write to standard output: No space left on device\n"
    )  # fmt: skip


def test_no_output_at_all(nursery: Any) -> None:
    closed = "import os, sys\nos.close(1)\nsys.stdout = None\n"
    with nursery.start_command(["configs"], before=closed) as process:
        _, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")


def test_what_is_ignored_stays_ignored(tiny: Any, nursery: Any, tmp_path: Path) -> None:
    """As under nohup."""
    before = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    before += SEND.format(function="make_trainer", name="SIGHUP")
    with nursery.start_command(words_of(tiny, tmp_path / "run"), before=before) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert (tmp_path / "run" / "weights" / "last.pt").is_file()

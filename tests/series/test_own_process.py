"""A process for each training: it ends with its parent, and says how it ended."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from cachedet.series.own_process import describe_end, start_process, wait_for_end
from cachedet.training.stopping import StopSignals


def test_what_ended_it_is_told() -> None:
    process = start_process(sys.exit, 3)
    wait_for_end(process, StopSignals())
    assert describe_end(process) == "its process ended with status 3 and left no result"
    killed = start_process(time.sleep, 600.0)
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert "SIGKILL; the system may have run out of memory" in describe_end(killed)


def test_a_signal_is_passed_on() -> None:
    process, signals = start_process(time.sleep, 600.0), StopSignals()
    signals.received = "SIGINT"
    wait_for_end(process, signals)
    assert process.exitcode == -signal.SIGTERM


def test_one_start_pays_for_all(tmp_path: Path) -> None:
    """Forked from one process that has imported torch: else each would take seconds."""
    said = tmp_path / "said.txt"
    tell = "import os, sys; print(os.getppid(), 'torch' in sys.modules, file=open({!r}, 'a'))"
    for _ in range(2):
        start_process(exec, tell.format(str(said))).join()
    first, second = said.read_text().splitlines()
    assert first == second
    assert first.endswith(" True")
    assert not first.startswith(f"{os.getpid()} ")

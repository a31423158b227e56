"""Calls functions of test files in several real processes that have joined over gloo."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from cachedet.distributed import collective

_LONGEST_SECONDS = 60.0
_TIMEOUT = timedelta(seconds=90)  # longer, so that a deadlock is a killed rank

# What a rank prints goes to a file: with nobody who reads its pipe it would stop once that is full.
# This folder is that of forking.py, so that what it forks can import this file.
_SCRIPT = """
import os, traceback
from pathlib import Path
folder, status = Path({folder!r}), 1
try:
    log = os.open(folder / "{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from ranks import run_rank
    run_rank(folder, {rank}, {world}, file={file!r}, function={function!r})
    status = 0
except BaseException:
    (folder / "{rank}.txt").write_text(traceback.format_exc())
finally:
    os._exit(status)
"""


class Ranks:
    """Calls a function in a process for each rank."""

    def __init__(self, nursery: Any, folder: Path) -> None:
        self._nursery = nursery
        self._folder = folder
        self._calls = 0
        self._started: list[Any] = []

    def start(self, function: Callable[[Any], Any], argument: Any = None, *, world: int) -> Path:
        """Folder the results will lie in; exactly one `statuses` belongs to each start."""
        self._calls += 1
        folder = self._folder / str(self._calls)
        folder.mkdir()
        torch.save(argument, folder / "argument.pt")
        names = {"file": function.__code__.co_filename, "function": function.__name__}
        scripts = [
            _SCRIPT.format(folder=str(folder), rank=rank, world=world, **names)
            for rank in range(world)
        ]
        self._started = [self._nursery.start(script) for script in scripts]
        return folder

    def statuses(self) -> list[int]:
        """Exit status of each rank, negative where a signal ended it; one that hangs is killed."""
        found = []
        for process in self._started:
            with process:
                try:
                    process.wait(_LONGEST_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                found.append(process.wait())
        return found

    def run(self, function: Callable[[Any], Any], argument: Any = None, *, world: int) -> list[Any]:
        """What each rank returned."""
        folder = self.start(function, argument, world=world)
        statuses = self.statuses()
        told = "\n".join(path.read_text() for path in sorted(folder.glob("*.txt")))
        assert statuses == [0] * world, f"{statuses}\n{told}"
        return [torch.load(folder / f"{n}.pt", weights_only=False) for n in range(world)]


def run_rank(folder: Path, rank: int, world: int, *, file: str, function: str) -> None:
    """In the process of the rank."""
    spec = importlib.util.spec_from_file_location("under_test", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["under_test"] = module
    spec.loader.exec_module(module)
    argument = torch.load(folder / "argument.pt", weights_only=False)
    torch.manual_seed(0)
    if world > 1:
        collective.join(
            backend="gloo",
            rank=rank,
            world=world,
            timeout=_TIMEOUT,
            init_method=f"file://{folder}/meeting",
        )
    torch.save(getattr(module, function)(argument), folder / f"{rank}.pt")
    collective.leave()

"""Runs functions of test files in several real processes that have joined over gloo.

A process of its own, because starting Python and torch takes seconds and forking it does not; the
ranks are forked before anything has started threads. See the fixture `ranks`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

import cachedet.detector.build
import cachedet.train  # noqa: F401
from cachedet import collective

_LONGEST_SECONDS = 60.0
_TIMEOUT = timedelta(seconds=90)  # longer, so that a deadlock is a killed rank


def main() -> None:
    torch.set_num_threads(1)
    torch.distributed.is_available()
    for line in sys.stdin:
        request = json.loads(line)
        ranks = [_fork(request, rank) for rank in range(request["world"])]
        print(json.dumps([_wait(rank) for rank in ranks]), flush=True)


def _fork(request: dict[str, Any], rank: int) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _run(request, rank)
            status = 0
        except BaseException:
            (Path(request["folder"]) / f"{rank}.txt").write_text(traceback.format_exc())
        finally:
            os._exit(status)
    return child


def _run(request: dict[str, Any], rank: int) -> None:
    folder = Path(request["folder"])
    spec = importlib.util.spec_from_file_location("under_test", request["file"])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["under_test"] = module
    spec.loader.exec_module(module)
    argument = torch.load(folder / "argument.pt", weights_only=False)
    torch.manual_seed(0)
    if request["world"] > 1:
        collective.join(
            backend="gloo",
            rank=rank,
            world=request["world"],
            timeout=_TIMEOUT,
            init_method=f"file://{folder}/meeting",
        )
    torch.save(getattr(module, request["function"])(argument), folder / f"{rank}.pt")
    collective.leave()


def _wait(child: int) -> int:
    """Exit status, negative where a signal ended it; a rank that hangs is killed."""
    end = time.monotonic() + _LONGEST_SECONDS
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


if __name__ == "__main__":
    main()

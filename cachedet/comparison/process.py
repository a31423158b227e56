"""A process for each cell: its memory is its own, and what ends it does not end the others."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from contextlib import nullcontext
from multiprocessing.process import BaseProcess

from cachedet.comparison.cell import CellTask, Interrupted, train_cell
from cachedet.comparison.results import CellResult
from cachedet.errors import CachedetError
from cachedet.progress import is_shown, shown
from cachedet.training.stopping import STOPPED_STATUS, StopSignals

_log = logging.getLogger("cachedet.comparison")
_LOOK_EVERY = 0.2  # seconds


def run_cell(task: CellTask, signals: StopSignals) -> CellResult:
    """Train and score a cell in a process of its own; a cell that fails is a result too.

    Args:
        task: of the cell.
        signals: that came to this process; they are passed on, and the cell saves its state.

    Raises Interrupted.
    """
    task.result.unlink(missing_ok=True)  # of an attempt that failed
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_run, args=(task, is_shown()))
    process.start()
    passed_on = False
    while process.is_alive():
        process.join(_LOOK_EVERY)
        if signals.received is not None and not passed_on:
            process.terminate()  # SIGTERM: where the terminal has sent it Ctrl-C, nothing changes
            passed_on = True
    if process.exitcode == STOPPED_STATUS or signals.received is not None:
        raise Interrupted(signals.received or "a signal")
    if task.result.is_file():
        return CellResult.read(task.result)
    return _keep(task, CellResult(key=task.key, error=_describe_end(process)))


def _run(task: CellTask, speaks: bool) -> None:
    """In the process of the cell, which shows what its parent shows."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with shown() if speaks else nullcontext():
        _keep(task, _try_to_train(task))


def _try_to_train(task: CellTask) -> CellResult:
    try:
        return train_cell(task)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(STOPPED_STATUS)
    except CachedetError as error:
        return _failed(task, str(error))
    except Exception as error:  # the other cells go on, whatever it was
        _log.error(traceback.format_exc().rstrip())
        return _failed(task, f"{type(error).__name__}: {error}")


def _failed(task: CellTask, why: str) -> CellResult:
    """What training advises, such as another --run, is not to be had in a comparison."""
    advice = (
        f"The same command tries it again, from its start once {task.folder} is removed; a changed "
        "config goes under another name, or under this one while no cell of it has succeeded"
    )
    return CellResult(key=task.key, error=f"{why.rstrip('. ')}. {advice}")


def _keep(task: CellTask, found: CellResult) -> CellResult:
    """In the cell's folder, which a cell that failed early has not made."""
    task.folder.mkdir(parents=True, exist_ok=True)
    found.write(task.result)
    return found


def _end_with_parent() -> None:
    """A parent that was killed can pass nothing on, and its next call would train the cell too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _describe_end(process: BaseProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with status {code} and left no result"

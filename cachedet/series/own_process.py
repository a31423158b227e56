"""A training in a process of its own: its memory is its own, and what ends it ends no other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.context import BaseContext, ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

from cachedet.allocator import keep_freed_memory
from cachedet.store.files.inside import remove_empty_folders, remove_inside
from cachedet.training.run_folder import RunFolder
from cachedet.training.stopping import StopSignals

LOOK_EVERY = 0.2  # seconds
_PRELOADED = ["cachedet.train", "cachedet.evaluate"]


def start_process(target: Callable[..., None], *args: Any) -> BaseProcess:
    """Start a process that ends with this one.

    Where the system can, it is forked from one that has imported what training needs and nothing
    else: twenty starts then cost one.
    """
    process = _context().Process(target=_run, args=(target, *args))  # type: ignore[attr-defined]
    process.start()
    started: BaseProcess = process
    return started


def wait_for_end(process: BaseProcess, signals: StopSignals) -> None:
    """Wait until it ends; a signal that came to this process is passed on, once."""
    passed_on = False
    while process.is_alive():
        process.join(LOOK_EVERY)
        if signals.received is not None and not passed_on:
            process.terminate()  # SIGTERM: where the terminal has sent it Ctrl-C, nothing changes
            passed_on = True


def describe_end(process: BaseProcess) -> str:
    """Why a process ended that left no result."""
    code = process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with status {code} and left no result"


def goes_on(folder: RunFolder, *, also: Sequence[str] = ()) -> bool:
    """Whether a run has saved a state to go on from; without one, `remove_unsaved`."""
    if folder.has_state():
        return True
    remove_unsaved(folder, also=also)
    return False


def remove_unsaved(folder: RunFolder, *, also: Sequence[str] = ()) -> None:
    """Remove what a run wrote that ended before it saved a state; other files and links stay.

    `also` names files that the caller has put into its folder.
    """
    root = folder.root
    files = (folder.config, folder.training, folder.metrics, folder.results, folder.detections)
    names = ("log.txt", *also)
    events = list(folder.tensorboard.glob("events.out.tfevents.*"))
    plot = folder.plots / "training.png"
    for path in (*files, *(root / name for name in names), *events, plot):
        remove_inside(root, path)
    for parent in (folder.plots, folder.tensorboard, folder.best.parent):
        remove_empty_folders(parent)


def _context() -> BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _run(target: Callable[..., None], *args: Any) -> None:
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    target(*args)


def _end_with_parent() -> None:
    """End where the parent was killed: its next call would train the run too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

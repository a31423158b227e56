"""What surrounds every command: signals while training starts, and output that is closed early.

It is at work before anything that takes time is imported: a scheduler does not wait for that.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from cachedet.allocator import keep_freed_memory
from cachedet.commands.output import CLOSED_STATUS, OutputFile, guard_output
from cachedet.text import shell_line
from cachedet.training.run_log import LOG, STOPPED, append_line, is_our_log, read_log
from cachedet.training.stopping import STOPPED_STATUS, StopSignals

TERMINATED_STATUS = 128 + signal.SIGTERM  # as shells tell of it
_TRAINS = "train-heads"
_LONG_WORK = (_TRAINS, "extract", "compare", "sweep", "demo")  # what they print is the least of it
_RUN = ("--run", "--run-folder")


def run_command(run: Callable[[], None]) -> None:
    """Call `run`, which reads the command line. Raises SystemExit."""
    keep_freed_memory()
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    output = guard_output(lasts=command in _LONG_WORK)
    try:
        if command == _TRAINS:
            _train(run)
        else:
            _end_as_interrupted(run)
        print(end="", flush=True)
    except (OSError, SystemExit):
        with suppress(OSError):
            print(end="", flush=True)
        if command in _LONG_WORK or output is None or output.failure is None:
            raise
        _end_without_output(output)


def _end_as_interrupted(run: Callable[[], None]) -> None:
    """SIGTERM ends these commands as Ctrl-C does: they say so, and give back what they hold.

    A second one ends them at once. Those that save a state have handlers of their own by then.
    """
    ended = False

    def end(number: int, _: object) -> None:
        nonlocal ended
        ended = True
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end)
    try:
        run()
    except BaseException as error:  # imports that are cut off raise errors of any kind
        if not ended:
            raise
        if not isinstance(error, SystemExit):  # which has said so
            print("interrupted", file=sys.stderr)
        sys.exit(TERMINATED_STATUS)


def _train(run: Callable[[], None]) -> None:
    """A signal while training starts ends it with status 75."""
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"  # ranks agree on a step to stop after
    signals = StopSignals(at_once=is_alone, announces=True)
    try:
        with signals:
            run()
    except BaseException:  # imports that are cut off raise errors of any kind
        if not signals.has_raised:
            raise
        _leave(signals.received or "", sys.argv)
        sys.exit(STOPPED_STATUS)


def _leave(signal_name: str, words: Sequence[str]) -> None:
    """Say how to go on, and leave a run folder that both this command and --resume take."""
    run = _run_folder(words)
    again = ["cachedet", *words[1:]]
    advice = "stopped; go on with"
    if run is not None and any(run.glob("weights/*.pt")):
        again += [] if "--resume" in again else ["--resume"]
    elif run is not None and not _note_stop(run, f"{STOPPED}: {signal_name}"):
        advice = "stopped; nothing can begin in that --run: choose another one in"
    from cachedet.store.files.locations import redacted  # only now: start-up is quick

    print(f"{signal_name}: {advice}\n  {redacted(shell_line(again))}", file=sys.stderr)


def _note_stop(run: Path, line: str) -> bool:
    """Leave a line in a folder that is new, empty or of a start of ours; whether it is one."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        names = set(os.listdir(run))
        if LOG in names:
            is_ours = not (run / LOG).is_symlink() and is_our_log(read_log(run))
        else:
            is_ours = not names - {"train.lock", "weights", "plots"}
        if is_ours and (LOG in names or not names):
            append_line(run, line)
    except OSError:
        return False
    return is_ours


def _run_folder(words: Sequence[str]) -> Path | None:
    """The folder that the command line names; what reads it properly may not be imported yet."""
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, is_joined, value = word.partition("=")
        if name in _RUN and (value or following):
            text = value if is_joined else following
            found = None if "://" in text else Path(text)  # the last one counts
    return found


def _end_without_output(output: OutputFile) -> None:
    """As other programs do whose output nobody reads, or that cannot be written."""
    if output.was_closed:
        sys.exit(CLOSED_STATUS)
    reason = output.failure and output.failure.strerror
    print(f"error: cannot write to standard output: {reason}", file=sys.stderr)
    sys.exit(1)

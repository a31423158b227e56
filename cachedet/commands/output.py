"""Standard output and error, which may be closed early, as by `| head -1`."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_ERRORS = "backslashreplace"  # of ASCII and Latin-1 terminals: \u732b
CLOSED_STATUS = 141  # as a shell says of a program that SIGPIPE ended


class OutputError(OSError):
    """Standard output cannot be written."""


class OutputFile(io.FileIO):
    """A descriptor of ours; after the first write that failed, all of them go nowhere.

    With `lasts` a failure is passed over, else it is raised, once.
    """

    def __init__(self, descriptor: int, *, lasts: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.failure: OSError | None = None  # the first
        self._lasts = lasts

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            with suppress(OSError):  # of processes that we start, too
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
            if not self._lasts:
                raise OutputError(error.errno, error.strerror) from error
            return memoryview(data).nbytes

    @property
    def was_closed(self) -> bool:
        """Whether the reader went away."""
        return self.failure is not None and self.failure.errno == errno.EPIPE


def guard_output(*, lasts: bool) -> OutputFile | None:
    """Let standard error never end this process, and standard output only without `lasts`.

    Returns standard output; None where it is no file of this process.
    """
    guarded = _guarded(sys.stdout, lasts=lasts)
    if guarded is not None:
        sys.stdout, output = guarded
    errors = _guarded(sys.stderr, lasts=True)
    if errors is not None:
        sys.stderr, _ = errors
    return None if guarded is None else output


def _guarded(stream: TextIO | None, *, lasts: bool) -> tuple[TextIO, OutputFile] | None:
    if not isinstance(stream, io.TextIOWrapper):
        return None
    try:
        stream.flush()
        raw = OutputFile(stream.fileno(), lasts=lasts)
    except (OSError, ValueError):  # closed, or in memory
        with suppress(OSError, ValueError):
            stream.reconfigure(errors=_ERRORS)
        return None
    text = io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),  # python -u has no buffer
        encoding=stream.encoding,
        errors=_ERRORS,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    return text, raw

"""Opening what people name: regular files only, never a pipe or device that blocks or floods."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_OPEN_FLAGS = sum(  # O_NONBLOCK: opening a pipe waits for no writer; O_BINARY: Windows
    getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY", "O_BINARY")
)


def open_regular(path: str | Path) -> int:
    """A descriptor. Raises OSError, IsADirectoryError where it is anything but a regular file."""
    if stat.S_ISREG(os.stat(path).st_mode):  # some devices act when they are opened
        descriptor = os.open(path, os.O_RDONLY | _OPEN_FLAGS)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):  # nobody replaced it in between
            return descriptor
        os.close(descriptor)
    raise IsADirectoryError(errno.EISDIR, "it is a folder, pipe or device, not a file", str(path))

"""Opening what people name: regular files only, never a pipe or device that blocks or floods."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from cachedet.errors import DatasetError

_MOST_TEXT = 256 << 20
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


def read_regular(path: str | Path, *, most: int = 1 << 62, first: int = -1) -> bytes:
    """The bytes of a regular file, or its `first` ones.

    Raises OSError, also where it has more than `most` bytes, and where no file can have the name.
    """
    try:
        descriptor = open_regular(path)
    except ValueError as error:  # NUL, or half a pair of surrogates
        raise FileNotFoundError(errno.ENOENT, "no file can have this name", str(path)) from error
    with open(descriptor, "rb") as file:
        nbytes = os.fstat(descriptor).st_size
        if first < 0 and nbytes > most:
            raise OSError(errno.EFBIG, f"{nbytes:,} bytes, expected at most {most:,}", str(path))
        return file.read(first)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file. Raises DatasetError."""
    try:
        return read_regular(path, most=_MOST_TEXT).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no text in UTF-8; save it as UTF-8") from error

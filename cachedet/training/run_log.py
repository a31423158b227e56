"""log.txt of a run folder: lines with the wall-clock time. Imports nothing that takes time."""

from __future__ import annotations

import errno
import os
import re
import time
from pathlib import Path
from typing import IO

from cachedet.text import printable

LOG = "log.txt"
STARTED = "started; store fingerprint"  # the first words of a run's line once its config is known
TRAINS = "trains stages behind"  # the first words of the line on what learns of the backbone
STOPPED = "stopped before the first step"
_OURS = re.compile(rf"\d{{4}}(-\d\d){{2}} \d\d(:\d\d){{2}} ({STARTED}|{STOPPED})\b", re.ASCII)
STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (.*)$", re.MULTILINE | re.ASCII)


def append_line(folder: Path, line: str) -> None:
    """Add a line; one that a crash cut short is ended first. Raises OSError.

    A link is refused: what it leads to may be anybody's.
    """
    content = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable(line)}\n".encode()
    with open_no_link(folder / LOG) as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            content = content if file.read(1) == b"\n" else b"\n" + content
        file.write(content)


def read_log(folder: Path) -> str:
    """All of it, whatever a crash has left in it; empty where there is none. Raises OSError."""
    try:
        return (folder / LOG).read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return ""


def open_no_link(path: Path) -> IO[bytes]:
    """A file to append to and to read. Raises OSError, also where it is a link."""

    def without_links(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)

    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link, which is not followed; remove it", str(path))
    return open(path, "a+b", opener=without_links)


def find_stages(log: str) -> str | None:
    """What it says of the stages that learn, last; None: nothing."""
    words = [line for _, line in STAMP.findall(log) if line.startswith(TRAINS)]
    return words[-1].removeprefix("trains ") if words else None


def is_our_log(log: str) -> bool:
    """Whether its first line is one with which the log of a run begins."""
    return _OURS.match(log) is not None


def tells_of_start(log: str) -> bool:
    """Whether a run has begun that writes its config.yaml."""
    return any(words.startswith(STARTED) for _, words in STAMP.findall(log))

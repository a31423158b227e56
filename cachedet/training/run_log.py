"""log.txt of a run folder: lines with the wall-clock time. Imports nothing that takes time."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from cachedet.text import printable

LOG = "log.txt"
STARTED = "started; store fingerprint"  # the first words of a run's line once its config is known
STOPPED = "stopped before the first step"
STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (.*)$", re.MULTILINE | re.ASCII)


def append_line(folder: Path, line: str) -> None:
    """Add a line; one that a crash cut short is ended first. Raises OSError."""
    content = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable(line)}\n".encode()
    with (folder / LOG).open("a+b") as file:
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

"""Who writes: a name for this process that others can check for life without a clock."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

_TOKEN = re.compile(r"~(?P<host>[\w.-]+)~(?P<pid>\d+)~(?P<start>\d+)")


class Life(Enum):
    """What can be said about a process from here."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"  # it ran on another machine


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process: host, process id, and its start time so that a reused id is another owner."""

    host: str
    pid: int
    start: int  # in clock ticks since the boot; 0 where the system does not tell

    @classmethod
    def me(cls) -> Owner:
        pid = os.getpid()
        return cls(host=_host(), pid=pid, start=_start_of(pid) or 0)

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """The owner named anywhere in `text`, such as the name of a temporary file."""
        match = _TOKEN.search(text)
        if match is None:
            return None
        return cls(host=match["host"], pid=int(match["pid"]), start=int(match["start"]))

    @property
    def token(self) -> str:
        return f"~{self.host}~{self.pid}~{self.start}"

    def life(self) -> Life:
        if self.host != _host():
            return Life.UNKNOWN
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return Life.DEAD
        except PermissionError:  # it exists and belongs to somebody else
            return Life.ALIVE
        found = _start_of(self.pid)
        return Life.ALIVE if found is None or self.start in (0, found) else Life.DEAD


def _host() -> str:
    return re.sub(r"[^\w.-]", "-", socket.gethostname()) or "host"


def _start_of(pid: int) -> int | None:
    """Start time of a process from /proc; None where there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])

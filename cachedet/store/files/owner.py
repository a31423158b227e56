"""Who writes: a name for this process that others can check for life without a clock."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import socket
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

_TOKEN = re.compile(
    r"~(?P<host>[\w.-]+)~(?P<pid>\d+)~(?P<start>\d+)~(?P<boot>[0-9a-f]+)~(?P<namespace>\d+)"
)
_FIRST_NAMESPACE = 0xEFFFFFFC  # Linux's number for the process ids of the machine itself


class Life(Enum):
    """What can be said about a process from here."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"  # it ran on another machine, in a container, or on Windows


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process: its id, its start time so that a reused id is another owner, and where it ran.

    Two containers may have one host name and the same process ids, so that a process is looked for
    only where its boot of the system and its namespace of process ids are ours.
    """

    host: str
    pid: int
    start: int  # in clock ticks since the boot; 0 where the system does not tell
    boot: str = "0"
    namespace: int = 0

    @classmethod
    def me(cls) -> Owner:
        pid = os.getpid()
        return cls(
            host=_host(),
            pid=pid,
            start=_start_of(pid) or 0,
            boot=_digest_of("/proc/sys/kernel/random/boot_id"),
            namespace=_namespace(),
        )

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """The owner named anywhere in `text`, such as the name of a temporary file."""
        match = _TOKEN.search(text)
        if match is None:
            return None
        return cls(
            host=match["host"],
            pid=int(match["pid"]),
            start=int(match["start"]),
            boot=match["boot"],
            namespace=int(match["namespace"]),
        )

    @property
    def token(self) -> str:
        return f"~{self.host}~{self.pid}~{self.start}~{self.boot}~{self.namespace}"

    def life(self) -> Life:
        me = Owner.me()
        if self == me:
            return Life.ALIVE
        if os.name == "nt":  # os.kill would not ask there, but interrupt
            return Life.UNKNOWN
        if self.host != me.host or self.namespace != me.namespace:
            return Life.UNKNOWN
        if self.boot != me.boot:  # a container may have come from another machine meanwhile
            return Life.DEAD if self.namespace == _FIRST_NAMESPACE else Life.UNKNOWN
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return Life.DEAD
        except PermissionError:  # it exists and belongs to somebody else
            return Life.ALIVE
        if _fields_of(self.pid)[:1] in (["Z"], ["X"]):  # its parent has not noticed its end
            return Life.DEAD
        start = _start_of(self.pid)
        return Life.ALIVE if start is None or self.start in (0, start) else Life.DEAD


def life_of(text: str) -> Life:
    """Life of the owner named anywhere in `text`; unknown where none is."""
    owner = Owner.parse(text)
    return Life.UNKNOWN if owner is None else owner.life()


def _host() -> str:
    """Host name, and the machine's own id where it has one: names are often given twice."""
    name = re.sub(r"[^\w.-]", "-", socket.gethostname())[:64] or "host"
    return f"{name}.{_digest_of('/etc/machine-id')}"


@functools.cache
def _digest_of(path: str) -> str:
    """Eight digits that stand for the content of a file; 0 where there is none."""
    try:
        content = Path(path).read_bytes().strip()
    except OSError:
        return "0"
    return hashlib.sha256(content).hexdigest()[:8] if content else "0"


def _namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # not Linux
        return 0


def _start_of(pid: int) -> int | None:
    """Start time of a process from /proc; None where there is no /proc."""
    fields = _fields_of(pid)
    return int(fields[19]) if fields else None


def _fields_of(pid: int) -> list[str]:
    """What /proc says of a process, from its state on; empty where there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []

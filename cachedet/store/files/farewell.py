"""Reads that stall are given up soon after the process was asked to end.

Whoever takes the signals says so here; what waits for a server asks. It imports nothing that takes
time, as the command line imports it before all else.
"""

from __future__ import annotations

import time

from cachedet.errors import RemoteStoreError

POLL_SECONDS = 0.25  # between two looks of whoever waits
_GRACE_SECONDS = 2.0  # for an answer that is on its way: a step under way is then finished
_asked: dict[int, float] = {}  # who was asked to end, and when; set in signal handlers: no lock


def note_end(who: object) -> None:
    """From now on, or from its first call on, waiting is bounded until `forget_end`."""
    _asked.setdefault(id(who), time.monotonic())


def forget_end(who: object) -> None:
    """The work that was asked to end has ended."""
    _asked.pop(id(who), None)


def require_wanted(where: str) -> None:
    """Raises RemoteStoreError where what is waited for is of no use any more."""
    asked = list(_asked.values())
    if asked and time.monotonic() > min(asked) + _GRACE_SECONDS:
        raise RemoteStoreError(f"{where} was not read: the process was asked to end meanwhile")


def pause(seconds: float, *, where: str) -> None:
    """Sleep. Raises what `require_wanted` raises."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        require_wanted(where)
        time.sleep(min(left, POLL_SECONDS))

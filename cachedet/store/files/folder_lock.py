"""One process at a time in a folder: a file in it names the process that works there."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from cachedet.errors import InputError
from cachedet.store.files.owner import Life, Owner

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


_EMPTY_SECONDS = 10.0  # after which nobody is about to write into an empty lock


@contextmanager
def sole_owner(lock: Path, *, works: str, instead: str) -> Iterator[None]:
    """Inside, `lock` names this process; that of a process known to have ended is taken over.

    `works` and `instead` are for the message: what is done there, and what to choose.

    Raises InputError while another process may work there, or where nothing can be written.
    """
    try:
        with one_at_a_time(lock.parent):  # else two could clear one dead lock
            _make(lock, works=works, instead=instead)
    except OSError as error:
        raise InputError(
            f"cannot write into {lock.parent}: {error.strerror or error}; {instead}"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a lock left behind is taken over
            lock.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """On file systems that cannot lock folders, two that start together are not kept apart."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make(lock: Path, *, works: str, instead: str) -> None:
    for _ in range(2):
        try:
            with lock.open("x", encoding="utf-8") as file:
                _write(file, lock)
        except FileExistsError:
            _clear(lock, works=works, instead=instead)
        else:
            return
    raise InputError(f"another process has just begun in {lock.parent}; {instead}")


def _write(file: TextIO, lock: Path) -> None:
    """Raises OSError, and then leaves no lock behind that says nothing."""
    try:
        file.write(Owner.me().token)
        file.flush()
    except OSError:
        lock.unlink(missing_ok=True)
        raise


def _clear(lock: Path, *, works: str, instead: str) -> None:
    """Raises InputError unless the process that made it is known to have ended."""
    try:
        text = lock.read_text(encoding="utf-8", errors="replace")
        age = time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return
    owner = Owner.parse(text)
    is_torn = not text and age > _EMPTY_SECONDS  # a crash between making and writing it
    if is_torn or (owner is not None and owner.life() is Life.DEAD):
        lock.unlink(missing_ok=True)
        return
    if text and owner is None:
        raise InputError(
            f"{lock} is there and is no lock of cachedet's; move it away, or {instead}"
        )
    who = f"process {owner.pid} on {owner.host}" if owner is not None else "somebody"
    raise InputError(
        f"{who} {works} in {lock.parent} already; wait for it, or {instead}. If it has ended, "
        f"remove {lock}"
    )

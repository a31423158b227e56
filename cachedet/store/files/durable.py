"""Files that are whole or absent, also after a power cut: temp + fsync + rename + fsync."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from cachedet.errors import StoreError
from cachedet.store.files.owner import Owner

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def require_space(root: Path, needed: int) -> None:
    """Raises StoreError where the disk is too small for `needed` more bytes."""
    free = _free_nbytes(root)
    if needed > free:
        raise StoreError(
            f"{root}: {readable_nbytes(needed)} are still to be written, the disk has "
            f"{readable_nbytes(free)} free, {readable_nbytes(needed - free)} too little. Free "
            "space, choose another --store, a smaller --image-size, fewer --views or a smaller "
            "--codec"
        )


def cannot_write(root: Path, error: OSError, *, needed: int | None = None) -> StoreError:
    """What to tell the user when the system refuses to write."""
    room = ""
    if error.errno in _NO_ROOM:
        wanted = f"this block needs {readable_nbytes(needed)}, " if needed is not None else ""
        room = f"; {wanted}{readable_nbytes(_free_nbytes(root))} are free"
    return StoreError(
        f"cannot write {error.filename2 or error.filename or root}: {error.strerror or error}"
        f"{room}. What was "
        "committed is safe: repair the cause and run the same command again"
    )


def readable_nbytes(nbytes: int) -> str:
    """``1234567`` -> ``1.23 MB``: the largest unit of which there is one at least."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes} bytes"


def _free_nbytes(root: Path) -> int:
    existing = next(path for path in (root, *root.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


TEMPORARY_SUFFIX = ".tmp"
_KEPT_OF_NAME = 24  # characters, of up to 4 bytes: with the owner's token there are fewer than 255
_counter = itertools.count()


def temporary_path(path: Path) -> Path:
    """A name beside `path` that no other writer uses; it tells who left it behind."""
    name = path.name[:_KEPT_OF_NAME]
    return path.with_name(f"{name}.{Owner.me().token}.{next(_counter)}{TEMPORARY_SUFFIX}")


def write_durably(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step. Raises OSError; the old file then stays whole.

    Where `path` is a link, the link is replaced, and what it leads to is not.
    """
    temporary = temporary_path(path)
    write_synced(temporary, [content])
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_synced(path: Path, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a new file and wait until its bytes are on the disk.

    Returns its length and content digest. Raises OSError, and then leaves no file behind.
    """
    nbytes, digest = 0, xxhash.xxh3_128()
    try:
        with path.open("xb", buffering=0) as file:
            for piece in pieces:
                digest.update(piece)
                nbytes += _write_all(file.fileno(), memoryview(piece).cast("B"))
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return nbytes, digest.hexdigest()


def sync_directory(path: Path) -> None:
    """Wait until the names in `path` are on the disk; Windows cannot do this."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, piece: memoryview) -> int:
    done = 0
    while done < len(piece):
        done += os.write(descriptor, piece[done:])
    return done


def encode_json(value: Any) -> bytes:
    """JSON for people and programs: indented, UTF-8."""
    return json.dumps(value, indent=1).encode()

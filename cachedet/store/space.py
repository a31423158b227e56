"""Room on the disk: asked for before anything is written, and named when the system refuses."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from cachedet.errors import StoreError

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
        f"cannot write {error.filename or root}: {error.strerror or error}{room}. What was "
        "committed is safe: mend the cause and run the same command again"
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

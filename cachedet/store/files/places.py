"""Where something shall be written: what stands in the way, and folders made for good."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from cachedet.store.files.durable import sync_directory, temporary_path, write_durably


def find_obstacle(folder: Path) -> OSError | None:
    """Why nothing can be written in a folder that is, or shall be, there; None: nothing is known.

    Only asks: nothing is written, so that nothing can be left behind. Where the filesystem tells
    no size, as /proc does, whose flags do not tell either, a folder is made and removed.
    """
    for path in (folder, *folder.absolute().parents):
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                text = f"is a link to {os.readlink(path)}, which is not there"
                return OSError(errno.ENOENT, text, str(path))
            continue
        except (OSError, ValueError) as error:
            return error if isinstance(error, OSError) else _error(errno.EINVAL, path)
        if not stat.S_ISDIR(mode):
            return OSError(errno.ENOTDIR, "is a file, not a folder", str(path))
        return _obstacle_in(path)
    return None


def make_folder(folder: Path) -> None:
    """Make it and those above it that are missing; their names are on the disk then.

    Raises OSError.
    """
    missing = []
    for path in (folder, *folder.absolute().parents):
        if os.path.isdir(path):
            break
        missing.append(path)
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


def write_files(root: Path, files: Mapping[str, bytes]) -> None:
    """Write every file (by relative path) durably, with the folders on the way to it."""
    for folder in dict.fromkeys((root / key).parent for key in files):
        make_folder(folder)
    for key, content in files.items():
        write_durably(root / key, content)


def _obstacle_in(folder: Path) -> OSError | None:
    effective = os.access in os.supports_effective_ids
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=effective):
        return _error(errno.EROFS if _is_read_only(folder) else errno.EACCES, folder)
    if not hasattr(os, "statvfs"):  # Windows
        return None
    disk = os.statvfs(folder)
    if disk.f_blocks == 0:
        return _try(folder)
    return _error(errno.ENOSPC, folder) if disk.f_bfree == 0 else None


def _try(folder: Path) -> OSError | None:
    probe = temporary_path(folder / "probe")
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        return OSError(error.errno, "no folder can be made in it", str(folder))
    return None


def _is_read_only(folder: Path) -> bool:
    return hasattr(os, "statvfs") and bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))

"""What lies in a folder itself: looked for and removed without following a link.

Links are followed for reading (people keep views on other disks). What they lead to may be
anybody's, so that nothing behind one is ever removed, nor the link itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NOT_A_LINK = getattr(os, "O_NOFOLLOW", 0)


def walk_inside(root: Path, folders: Iterable[str]) -> Iterator[os.DirEntry[str]]:
    """Everything in these folders of `root` but folders; links are named and not followed.

    What vanishes meanwhile or may not be listed is left out.
    """
    for folder in folders:
        path = root / folder
        if path.is_symlink():
            continue
        try:
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            continue
        below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        yield from (entry for entry in entries if not entry.is_dir(follow_symlinks=False))
        yield from walk_inside(path, below)


def remove_inside(root: Path, path: Path) -> None:
    """Remove a regular file below `root`, also while others move folders and links about.

    Nothing happens where it is gone, or is or lies behind a link. Raises OSError.
    """
    *folders, name = path.relative_to(root).parts
    if os.open not in os.supports_dir_fd:  # Windows
        if not any(one.is_symlink() for one in (path, *path.parents[: len(folders)])):
            path.unlink(missing_ok=True)
        return
    with _nothing_there():
        descriptor = os.open(root, _FOLDER)
        try:
            for folder in folders:
                below = os.open(folder, _FOLDER | _NOT_A_LINK, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            if stat.S_ISREG(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _nothing_there() -> Iterator[None]:
    """Where a folder was expected, a link says that it is none (Linux) or one too many (macOS)."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise


def remove_empty_folders(folder: Path) -> None:
    """Remove it, and the folders in it, as far as they hold nothing."""
    if folder.is_symlink():
        return
    for parent, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # something is left in it
            os.rmdir(parent)

"""A folder on the disk of a store to come, that is gone afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cachedet.errors import InputError
from cachedet.store.leftovers import is_dead
from cachedet.store.owner import Owner

_SUFFIX = ".estimating"


@contextlib.contextmanager
def trial_folder(store: Path) -> Iterator[Path]:
    """An empty folder beside `store`, or in the nearest folder above it that there is.

    It is removed at the end, whatever that is; what a killed process left there is removed too.

    Raises InputError where nothing can be written.
    """
    place = Path(os.path.realpath(store))
    above = existing_folder(store)
    _remove_dead(above)
    folder = above / f".{place.name}.{Owner.me().token}{_SUFFIX}"
    try:
        folder.mkdir()
    except OSError as error:
        raise InputError(
            f"--store {store}: nothing can be written in {above}: {error.strerror or error}; "
            "`cachedet estimate` writes a small trial store where the store shall lie. Choose "
            "another place, or mend the permissions"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def existing_folder(store: Path) -> Path:
    """The one that holds, or will hold, the store or the folders on the way to it."""
    return next(path for path in Path(os.path.realpath(store)).parents if path.is_dir())


def _remove_dead(above: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that may not be listed
        for name in os.listdir(above):
            if name.endswith(_SUFFIX) and is_dead(name):
                shutil.rmtree(above / name, ignore_errors=True)

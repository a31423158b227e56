"""Which files of a folder are images, where no annotation file says so."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

from cachedet.data.images import image_suffixes
from cachedet.errors import InputError
from cachedet.text import printable

_log = logging.getLogger(__name__)


def images_in(
    folder: Path,
    *,
    recursive: bool = False,
    without: Path | None = None,
    others: Counter[str] | None = None,
) -> list[Path]:
    """Files with an ending of an image format, by name; a line is logged on what is passed over.

    Hidden files are no images: `._x.jpg` is what macOS keeps beside x.jpg on foreign disks. With
    `recursive` its folders are looked into after its own images, but for hidden ones, links, and
    the folder `without`. How many files of which other endings there are is added to `others`.

    Raises InputError where a folder cannot be listed, or there are no images.
    """
    images: list[Path] = []
    passed_over = Counter[str]()
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        names, folders = _look_into(place, passed_over)
        images += [place / name for name in sorted(names)]
        if recursive:
            inner = [place / name for name in sorted(folders, reverse=True)]
            waiting += [each for each in inner if not _is_left_out(each, without)]
        else:
            passed_over["folders"] += len(folders)
    if others is not None:
        others.update(passed_over)
    if not images:
        endings = ", ".join(sorted(image_suffixes()))
        raise InputError(f"{printable(folder)} holds no images ({endings})")
    if passed_over.total():
        _log.info("%s: %s", printable(folder), _describe(passed_over))
    return images


def _look_into(folder: Path, passed_over: Counter[str]) -> tuple[list[str], list[str]]:
    """Names of images and of folders; what is neither is counted. Raises InputError."""
    images, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                ending = os.path.splitext(entry.name)[1].lower()
                if entry.name.startswith("."):
                    passed_over[_HIDDEN] += 1
                elif _is_folder(entry):
                    folders.append(entry.name)
                elif ending in image_suffixes():
                    images.append(entry.name)
                else:
                    passed_over[ending or "no ending"] += 1
    except OSError as error:
        raise InputError(f"cannot list {printable(folder)}: {error.strerror or error}") from error
    return images, folders


_HIDDEN = "hidden"  # no file has this ending


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links: said when its turn comes
        return False


def _is_left_out(folder: Path, without: Path | None) -> bool:
    """A link, too: it might lead in a circle."""
    if folder.is_symlink():
        return True
    return without is not None and without.is_dir() and os.path.samefile(folder, without)


def _describe(passed_over: Counter[str]) -> str:
    others = Counter({kind: n for kind, n in passed_over.items() if kind != _HIDDEN and n})
    hidden = passed_over[_HIDDEN]
    parts = [f"{hidden} hidden"] if hidden else []
    if others:
        kinds = ", ".join(printable(kind) for kind, _ in others.most_common(5))
        parts.append(f"{others.total()} that are no image files by their names ({kinds})")
    return f"passed over {' and '.join(parts)}"

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


def images_in(folder: Path) -> list[Path]:
    """Files with an ending of an image format, by name; a line is logged on what is passed over.

    Hidden files are no images: `._x.jpg` is what macOS keeps beside x.jpg on foreign disks.

    Raises InputError where the folder cannot be listed, or holds no images.
    """
    images, hidden, others = [], 0, Counter[str]()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                ending = os.path.splitext(entry.name)[1].lower()
                if entry.name.startswith("."):
                    hidden += 1
                elif _is_folder(entry):
                    others["folders"] += 1
                elif ending in image_suffixes():
                    images.append(entry.name)
                else:
                    others[ending or "no ending"] += 1
    except OSError as error:
        raise InputError(f"cannot list {printable(folder)}: {error.strerror or error}") from error
    if not images:
        endings = ", ".join(sorted(image_suffixes()))
        raise InputError(f"{printable(folder)} holds no images ({endings})")
    if hidden or others:
        _log.info("%s: %s", printable(folder), _passed_over(hidden, others))
    return [folder / name for name in sorted(images)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links: said when its turn comes
        return False


def _passed_over(hidden: int, others: Counter[str]) -> str:
    parts = [f"{hidden} hidden"] if hidden else []
    if others:
        kinds = ", ".join(printable(kind) for kind, _ in others.most_common(5))
        parts.append(f"{others.total()} that are no image files by their names ({kinds})")
    return f"passed over {' and '.join(parts)}"

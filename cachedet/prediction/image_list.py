"""Which files a call of `predict` means: files, folders, patterns, videos; each of them once."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cachedet.data.image_folders import images_in
from cachedet.data.images import image_suffixes
from cachedet.errors import InputError
from cachedet.prediction.videos import SUFFIXES, is_video, require_videos_are_read
from cachedet.progress import count_of
from cachedet.text import printable

_log = logging.getLogger(__name__)


def list_images(
    images: Sequence[Path],
    *,
    recursive: bool = False,
    every: int = 1,
    out: Path | None = None,
) -> list[Path]:
    """The image and video files, in the order named; those of a folder or pattern by name.

    Args:
        images: files, folders, and patterns such as `photos/**/*.jpg`, which were not resolved yet.
        recursive: whether folders in folders are looked into.
        every: only every so many of the images of each folder.
        out: a folder that is written into: what lies in it is passed over where it was not named.

    Raises InputError: nothing of that name, no images, a folder that cannot be listed, or a video
    and no PyAV.
    """
    files: dict[str, Path] = {}
    for path in images:
        if os.path.isdir(path):
            found = _images_in(path, recursive=recursive, without=out)[::every]
        elif os.path.lexists(path):  # whether it can be read is seen when its turn comes
            found = [path]
        else:
            found = _matching(path, out)
        for file in found:
            files.setdefault(os.path.abspath(file), file)
    if not files:
        raise InputError("expected at least one image or folder of images")
    listed = list(files.values())
    video = next(filter(is_video, listed), None)
    if video is not None:
        require_videos_are_read(video)
    return listed


def _images_in(folder: Path, *, recursive: bool, without: Path | None) -> list[Path]:
    """Raises InputError; that videos are passed over is said."""
    others = Counter[str]()
    try:
        images = images_in(folder, recursive=recursive, without=without, others=others)
    except InputError as error:
        hint = _hint_of_videos(folder, others)
        raise InputError(f"{error}{hint and '; '}{hint}") from error
    if hint := _hint_of_videos(folder, others):
        _log.info("%s: %s", printable(folder), hint)
    return images


def _hint_of_videos(folder: Path, others: Counter[str]) -> str:
    endings = [ending for ending in others if ending in SUFFIXES]
    if not endings:
        return ""
    count = count_of(sum(others[ending] for ending in endings), "video")
    pattern = printable(folder / "**" / f"*{endings[0]}")
    return f"{count} passed over, for videos are named: '{pattern}'"


def _matching(pattern: Path, out: Path | None) -> list[Path]:
    """Raises InputError."""
    text = str(pattern)
    if not glob.has_magic(text):
        raise InputError(f"there is no image {printable(text)}{_hint_of_url(text)}")
    found = sorted(glob.iglob(text, recursive=True))
    endings = image_suffixes() | SUFFIXES
    inside = (
        None if out is None or _begins_in(text, out) else os.path.join(os.path.abspath(out), "")
    )
    files = [
        Path(name)
        for name in found
        if os.path.splitext(name)[1].lower() in endings
        and not os.path.isdir(name)
        and not (inside and os.path.abspath(name).startswith(inside))
    ]
    if not files:
        others = f"; {len(found)} other files or folders match" if found else ""
        raise InputError(f"no image or video matches {printable(text)}{others}")
    return files


def _begins_in(pattern: str, out: Path) -> bool:
    """Whether all that could match lies in `out`: then it was meant."""
    root = os.path.dirname(glob.escape(pattern).partition("[")[0])
    return _folder(root).startswith(_folder(out))


def _folder(path: Path | str) -> str:
    return os.path.join(os.path.abspath(path), "")


def _hint_of_url(text: str) -> str:
    """A path has one slash where a URL has two."""
    is_url = re.match(r"(https?|ftp|s3|gs):/", text, re.IGNORECASE)
    return "; URLs are not taken: download the image and name the file" if is_url else ""

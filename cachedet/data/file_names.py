"""File names as annotation files give them: where they lead, and what may have been meant."""

from __future__ import annotations

import itertools
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from cachedet.data.sections import Refusals
from cachedet.errors import BadImageError

_MOST_FILES = 200_000  # looked at for suggestions
_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")


def require_inside(
    file_names: Iterable[str],
    images: Path | str,
    where: Path,
    *,
    follow_links: bool,
    known: Iterable[str] | None = None,
) -> None:
    """No image may lie outside the folder, be it by `..`, an absolute path or (unless they may be
    followed) a link.

    `known` are the names below `images`, where it is no folder; then there are no links.
    Raises DatasetError that names them.
    """
    root = os.path.realpath(images)
    nearest = NearestFiles(names_below(images) if known is None else known)
    folders, refusals = {""}, Refusals(where)
    for name in file_names:
        if leaves(name):
            what = f"file names that leave the folder {images}"
            refusals.add(what, f"{name!r}{nearest.hint(name, before=', ')}", advice=_LEAVES)
            continue
        if follow_links or known is not None:
            continue
        folder = posixpath.dirname(name)
        places = [] if folder in folders else [folder]
        folders.add(folder)
        if _is_link(os.path.join(root, name)):
            places.append(name)
        for place in places:
            if target := _way_out(place, root):
                what = f"links, or names behind them, that leave the folder {root}"
                refusals.add(what, f"{place!r} leads to {target}", advice=_LINKS)
    refusals.settle()


_LEAVES = "Give --images the folder that holds all of them, or take its parents out of the names"
_LINKS = "Links are followed with --follow-links; give it where you trust the data set"


def leaves(name: str) -> bool:
    """Whether a file name leads out of the folder that it starts from, links aside."""
    inside = posixpath.normpath(name)
    return posixpath.isabs(name) or inside == ".." or inside.startswith("../")


def _is_link(path: str) -> bool:
    try:
        return os.path.islink(path)
    except ValueError:  # no file can have this name: the look at all images will say so
        return False


def _way_out(name: str, root: str) -> str | None:
    """Where a name leads to through links; None where that is inside."""
    try:
        target = os.path.realpath(os.path.join(root, name))
    except ValueError:
        return None
    is_inside = target == root or target.startswith(os.path.join(root, ""))
    return None if is_inside else target


def is_storable(name: str) -> bool:
    """Whether it has no control characters."""
    return all(ord(character) >= 32 for character in name)


def require_storable(name: str) -> None:
    """Raises BadImageError where a store could not keep the name, nor a terminal show it."""
    if not is_storable(name):
        raise BadImageError("its file name has control characters")


def names_below(root: Path | str) -> Iterator[str]:
    """Files of a folder and of those inside, from there on, listed while they are asked for."""
    for folder, _, files in os.walk(root):
        inside = Path(os.path.relpath(folder, root))
        for file in files:
            yield (inside / file).as_posix()


class NearestFiles:
    """Knows files by what people and systems change in names; looks at them when it is asked."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = names

    def hint(self, name: str, *, before: str = "; ") -> str:
        """The end of a message on a file that is not there; empty where nothing is like it."""
        found = self.find(name)
        return "" if found is None else f"{before}nearest: {found!r}"

    def find(self, name: str) -> str | None:
        """The file that may have been meant, from the root.

        Case, Unicode form, suffix, backslashes, percent-encoding and the folders before the name
        may differ.
        """
        wanted = _normalised(name)
        near = self._by_stem.get(wanted.stem, [])
        return max(near, key=lambda path: _likeness(_normalised(path), wanted), default=None)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in itertools.islice(self._names, _MOST_FILES):
            found.setdefault(_normalised(path).stem, []).append(path)
        return found


def _normalised(name: str) -> PurePosixPath:
    plain = unquote(name.replace("\\", "/"))
    return PurePosixPath(unicodedata.normalize("NFC", plain).casefold())


def _likeness(path: PurePosixPath, wanted: PurePosixPath) -> tuple[bool, int]:
    """Whether the endings agree, and in how many of the last folders they do."""
    pairs = zip(path.parts[-2::-1], wanted.parts[-2::-1], strict=False)
    same = [one == other for one, other in pairs]
    return path.suffix == wanted.suffix, (*same, False).index(False)


def match_names(wanted: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Which of `known` is each of `wanted`: by the whole name, its last part, or that without
    Label Studio's prefix, as far as it is the only one.
    """
    found: list[int | None] = [None] * len(wanted)
    for key in (posixpath.normpath, posixpath.basename, _bare):
        ours, theirs = Counter(map(key, wanted)), Counter(map(key, known))
        row_of = {key(name): row for row, name in enumerate(known) if theirs[key(name)] == 1}
        for place, name in enumerate(wanted):
            if found[place] is None and ours[key(name)] == 1:
                found[place] = row_of.get(key(name))
    return found


def _bare(name: str) -> str:
    return without_prefix(posixpath.basename(name))


def without_prefix(name: str) -> str:
    """``3f2a91bc-cat.jpg`` -> ``cat.jpg``: Label Studio writes 8 digits before uploaded files."""
    folder, file = posixpath.split(name)
    return posixpath.join(folder, _UPLOADED.sub("", file))

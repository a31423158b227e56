"""Images in the folder that no annotation names: nobody learns of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cachedet.data.images import image_suffixes
from cachedet.data.sections import listed
from cachedet.inspection.annotated_set import AnnotatedSet
from cachedet.inspection.finding import Finding

_MOST_FILES = 200_000  # looked at; of a larger folder nothing is said


def unnamed_findings(sets: Sequence[AnnotatedSet]) -> Iterator[Finding]:
    """One a folder, for information: another file may name them. What one set names is named."""
    if any(one.dataset is None for one in sets):  # names are not known
        return
    shown = {os.path.realpath(one.images): one.images for one in sets}
    named = {
        os.path.normpath(os.path.join(os.path.realpath(one.images), name))
        for one in sets
        for name in one.named
    }
    words = "named by neither" if len(sets) > 1 else "not named by"
    by = " nor ".join(one.name for one in sets)
    for folder, as_given in shown.items():
        found = _images_below(folder)
        unnamed = sorted(name for name in found if os.path.join(folder, name) not in named)
        noun = "image is" if len(unnamed) == 1 else "images are"
        if unnamed:
            yield Finding(
                rank="fine",
                kind="unnamed",
                text=f"in {as_given} {len(unnamed):,} {noun} {words} {by} ({listed(unnamed)})",
                count=len(unnamed),
            )


def _images_below(folder: str) -> list[str]:
    """By their names from there on, without hidden ones; none where there are too many files."""
    endings, found, count = image_suffixes(), list[str](), 0
    for inside, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(os.path.relpath(inside, folder))
        count += len(files)
        if count > _MOST_FILES:
            return []
        found += [
            (below / name).as_posix()
            for name in files
            if os.path.splitext(name)[1].lower() in endings and not name.startswith(".")
        ]
    return found

"""Images in the folder that no annotation names: nobody learns of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence

from cachedet.data.image_files import ImageFiles
from cachedet.data.images import image_suffixes
from cachedet.data.sections import listed
from cachedet.inspection.annotated_set import AnnotatedSet
from cachedet.inspection.finding import Finding

_MOST_FILES = 200_000  # looked at; of a larger folder nothing is said


def unnamed_findings(sets: Sequence[AnnotatedSet]) -> Iterator[Finding]:
    """One a folder, for information: another file may name them. What one set names is named."""
    if any(one.dataset is None for one in sets):  # names are not known
        return
    files = {os.path.realpath(one.files.location): one.files for one in sets}
    named = {
        os.path.normpath(os.path.join(os.path.realpath(one.files.location), name))
        for one in sets
        for name in one.named
    }
    words = "named by neither" if len(sets) > 1 else "not named by"
    by = " nor ".join(one.name for one in sets)
    for folder, place in files.items():
        found = _images_in(place)
        unnamed = sorted(name for name in found if os.path.join(folder, name) not in named)
        noun = "image is" if len(unnamed) == 1 else "images are"
        if unnamed:
            yield Finding(
                rank="fine",
                kind="unnamed",
                text=f"in {place.location} {len(unnamed):,} {noun} {words} {by} "
                f"({listed(unnamed)})",
                count=len(unnamed),
            )


def _images_in(files: ImageFiles) -> list[str]:
    """By their names from there on, without hidden ones; none where there are too many files."""
    names = list(itertools.islice(files.names(), _MOST_FILES + 1))
    if len(names) > _MOST_FILES:
        return []
    endings = image_suffixes()
    images = [name for name in names if os.path.splitext(name)[1].lower() in endings]
    return [name for name in images if not f"/{name}".count("/.")]

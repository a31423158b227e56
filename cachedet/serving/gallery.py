"""The folder that the page browses: which images it holds, their bytes, thumbnails and truth.

Images are asked for by their number, never by a name. A link that leads out of the folder is
followed only where that was allowed.
"""

from __future__ import annotations

import contextlib
import functools
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cachedet.data.annotation_formats import read_dataset
from cachedet.data.file_names import require_inside
from cachedet.data.image_folders import images_in
from cachedet.data.images import decoded, opened
from cachedet.errors import BadImageError, DatasetError, InputError
from cachedet.serving.answer import Truth, as_jpeg
from cachedet.structures import Annotations
from cachedet.text import printable

PAGE = 24  # images that one list names
_SIDE = 224  # pixels of a thumbnail
_QUALITY = 75
_KEPT = 512  # thumbnails in memory, some 8 kB each


class Gallery:
    """The images of a folder as they were when it was opened."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        follow_links: bool = False,
        annotations: Annotations | None = None,
    ) -> None:
        self.folder = folder
        self.names = names  # from the folder, with slashes
        self.annotations = annotations
        self._follow_links = follow_links
        annotated = () if annotations is None else annotations.file_names
        self._rows = {posixpath.normpath(name): row for row, name in enumerate(annotated)}
        self._thumbnails = functools.lru_cache(maxsize=_KEPT)(self._make_thumbnail)

    @classmethod
    def open(
        cls, folder: Path, *, recursive: bool, follow_links: bool, annotations: Path | None
    ) -> Gallery:
        """The images of the folder; of those, with annotations, the ones that they name.

        Raises InputError: no folder, no images, annotations of others or that cannot be read.
        """
        files = images_in(folder, recursive=recursive)
        names = [file.relative_to(folder).as_posix() for file in files]
        if annotations is None:
            return cls(folder, names, follow_links=follow_links)
        described = read_dataset(
            annotations=annotations, images=folder, follow_links=follow_links, rotated="outer"
        ).annotations
        annotated = set(map(posixpath.normpath, described.file_names))
        listed = [name for name in names if name in annotated]
        if not listed:
            hint = "" if recursive else "; folders in it are looked into with --recursive"
            raise InputError(
                f"none of the {len(names)} images in {printable(folder)} is named in "
                f"{printable(annotations)}, which names {printable(described.file_names[0])}{hint}"
            )
        return cls(folder, listed, follow_links=follow_links, annotations=described)

    def __len__(self) -> int:
        return len(self.names)

    def listed(self, start: int) -> list[dict[str, Any]]:
        """Number and name of the images on the page that begins with image `start`."""
        numbers = range(start, min(start + PAGE, len(self)))
        return [{"number": n, "name": printable(self.names[n])} for n in numbers]

    def truth_of(self, number: int) -> Truth | None:
        """None without annotations."""
        if self.annotations is None:
            return None
        return Truth(annotations=self.annotations, row=self._rows[self.names[number]])

    @contextlib.contextmanager
    def opened(self, number: int) -> Iterator[bytes]:
        """The bytes of an image. Raises BadImageError without its name, also on a link outwards."""
        name = self.names[number]
        try:
            require_inside([name], self.folder, self.folder, follow_links=self._follow_links)
        except DatasetError as error:  # its words are of a data set, and say where the link leads
            raise BadImageError(
                "it is a link, or lies behind one, that leaves the folder; start with "
                "--follow-links where you trust it"
            ) from error
        with opened(self.folder / name) as content:
            yield content

    def thumbnail(self, number: int) -> bytes:
        """A small JPEG. Raises BadImageError with its name."""
        return self._thumbnails(number)

    def _make_thumbnail(self, number: int) -> bytes:
        try:
            with self.opened(number) as content, decoded(content, image_size=_SIDE) as image:
                return as_jpeg(image.pixels, long_side=_SIDE, quality=_QUALITY)
        except BadImageError as error:
            raise BadImageError(f"{printable(self.names[number])}: {error}") from error

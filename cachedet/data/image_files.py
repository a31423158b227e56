"""Where the images of a data set lie: a folder, or another place that says the same of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cachedet.data.file_names import names_below
from cachedet.data.images import opened
from cachedet.errors import DatasetError

_OBJECT = re.compile(r"(s3a?|gs|gcs|az|abfss?):/")


class ImageFiles(Protocol):
    """Files by the names that annotations give them; messages name `location`."""

    @property
    def location(self) -> str: ...

    @property
    def folder(self) -> Path:
        """For what reads the files itself. Raises DatasetError where there is none."""

    def require_some(self) -> None:
        """Raises DatasetError where there is no such place, or nothing in it."""

    def has(self, name: str) -> bool:
        """Whether there is a file of exactly this name."""

    def names(self) -> Iterator[str]:
        """Of all files below it, listed while they are asked for."""

    def expect(self, names: Iterable[str]) -> None:
        """Say what will be opened next, in this order, so that it may be read ahead."""

    def opened(self, name: str) -> AbstractContextManager[bytes]:
        """The bytes of a file; of large files one at a time is inside.

        Raises BadImageError (without the file's name), of a FileNotFoundError where there is none.
        """

    def where(self, name: str) -> str:
        """The file's place, for people."""


@dataclass(frozen=True)
class ImageFolder:
    """A folder of this machine, whose system reads ahead itself."""

    folder: Path

    @property
    def location(self) -> str:
        return str(self.folder)

    def require_some(self) -> None:
        if not os.path.isdir(self.folder):
            if os.path.exists(self.folder):
                raise DatasetError(f"--images expects a folder of images; {self.folder} is a file")
            why = "; only `extract` takes images in a bucket" if was_url(self.folder) else ""
            raise DatasetError(
                f"--images expects a folder of images; there is no folder {self.folder}{why}"
            )
        if next(self.folder.iterdir(), None) is None:
            raise DatasetError(f"--images {self.folder} is an empty folder, expected images in it")

    def has(self, name: str) -> bool:
        return os.path.isfile(self.folder / name)

    def names(self) -> Iterator[str]:
        return names_below(self.folder)

    def expect(self, names: Iterable[str]) -> None:
        """Nothing."""

    def opened(self, name: str) -> AbstractContextManager[bytes]:
        return opened(self.folder / name)

    def where(self, name: str) -> str:
        return str(self.folder / name)


def was_url(path: Path) -> bool:
    """Whether a path was made of the URL of an object."""
    return _OBJECT.match(str(path)) is not None


def as_files(images: Path | ImageFiles) -> ImageFiles:
    """A path is a folder."""
    return ImageFolder(images) if isinstance(images, Path) else images

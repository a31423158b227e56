"""What `--annotations` that is no known format seems to be, and what to give in its place."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from cachedet.data.images import image_suffixes
from cachedet.data.regular_files import read_regular
from cachedet.data.sections import listed
from cachedet.data.yolo_folders import NAME_FILES, NO_LABELS, is_bare_folder, yaml_in

_MOST_FILES = 2000  # that are looked at below a folder
_TRIED = 20  # text files of which one may be a label file
_HEAD_NBYTES = 4096
_LABEL = re.compile(rb"\s*\d+([ \t]+-?[\d.]+(e-?\d+)?){4,}\s*(\n|$)")  # of YOLO
_WRITTEN = {
    "feature store": ("manifest.json", "zarr.json"),
    "run folder": ("config.yaml", "training.json"),
    "comparison": ("settings.json", "cells"),
    "sweep": ("settings.json", "trials"),
}
_NAMES = "a classes.txt (one name a line, in the order of their numbers)"
LABELME = (
    "LabelMe's, one JSON file an image, which is not read: `labelme-to-yolo` or others write it as "
    "YOLO or COCO"
)


@dataclass(frozen=True)
class _Inside:
    """The first files of a folder and of those below it."""

    folder: Path

    @cached_property
    def files(self) -> list[Path]:
        return list(islice(_files_below(self.folder), _MOST_FILES))

    @cached_property
    def images(self) -> list[Path]:
        return [path for path in self.files if path.suffix.lower() in image_suffixes()]

    @cached_property
    def jsons(self) -> list[Path]:
        own = (path for path in self.files if path.parent == self.folder)
        return [path for path in own if path.suffix.lower() == ".json"]


def describe_folder(folder: Path) -> str:
    """What to give in the place of a folder that is not read, as a clause; "" if nothing tells.

    Raises OSError where one cannot be listed.
    """
    inside = _Inside(folder)
    return next((text for rule in _RULES if (text := rule(inside))), "")


def describe_file(source: Path) -> str:
    """Likewise of a file; label files and lists of YOLO are parts of a data set.

    Raises OSError where the folder around a label file cannot be listed.
    """
    if source.name in NAME_FILES:
        return f"it names classes alone: give the folder of the data set, {source.parent}"
    if source.suffix != ".txt":
        return ""
    if _is_label_file(source):
        return f"it is one label file of YOLO; {_whole_data_set(source)}"
    lines = _head_of(source).decode(errors="replace").splitlines()
    if lines and os.path.splitext(lines[0].strip())[1].lower() in image_suffixes():
        return (
            f"it is a list of images: name it in a data.yaml (`train: {source.name}`, and `names` "
            "of the classes), and give that"
        )
    return ""


def is_labelme(path: Path) -> bool:
    """Whether a JSON file begins as LabelMe's do."""
    head = _head_of(path)
    return b'"shapes"' in head and b'"images"' not in head


def _ours(inside: _Inside) -> str:
    """A folder that cachedet wrote, told by two names in it."""
    kind = next(
        (kind for kind, names in _WRITTEN.items()
         if all((inside.folder / name).exists() for name in names)), ""
    )  # fmt: skip
    return f"it is a {kind}: give the annotations that it was made of" if kind else ""


def _yolo(inside: _Inside) -> str:
    texts = (path for path in inside.files if path.suffix == ".txt" and path.name not in NO_LABELS)
    label = next(filter(_is_label_file, islice(texts, _TRIED)), None)
    return "" if label is None else f"it holds label files of YOLO; {_whole_data_set(label)}"


def _whole_data_set(label: Path) -> str:
    """What to give for a label file: the data set above it, or how to make one of it."""
    folder, parts = label.parent, label.parent.parts
    is_named = "labels" in parts
    above = folder.parent
    if is_named:
        above = Path(*parts[: len(parts) - 1 - parts[::-1].index("labels")])
    whole = yaml_in(folder) or yaml_in(above) or (above if is_bare_folder(above) else None)
    if is_named and whole is not None:
        return f"give the data set that they are of, {whole}"
    own = next((name for name in NAME_FILES if (folder / name).is_file()), None)
    names = f"put {_NAMES}" if own is None else f"move its {own}"
    if own is None and any(path.suffix.lower() in image_suffixes() for path in folder.iterdir()):
        return f"{names} into {folder}, and give that folder"
    if is_named:
        return f"{names} into {above}, and give that folder"
    return (
        f"name the folder {folder.name} `labels`, {names} beside it, and give the folder of both, "
        f"{above}"
    )


def _json(inside: _Inside) -> str:
    if not inside.jsons:
        return ""
    if is_labelme(inside.jsons[0]):
        return f"it is {LABELME}"
    if len(inside.jsons) == 1:
        return f"give the file in it: {inside.jsons[0]}"
    return f"give one of the files in it: {listed([path.name for path in inside.jsons])}"


def _images(inside: _Inside) -> str:
    if not inside.images or len(inside.images) < len(inside.files):
        return ""
    folders = sorted({path.parent.name for path in inside.images if path.parent != inside.folder})
    if len(folders) > 1:
        return (
            f"it holds images in folders ({listed(folders)}), as for classification: a detector "
            "needs boxes, which folders do not have"
        )
    return "it holds images, which are for --images, and no boxes"


_RULES: tuple[Callable[[_Inside], str], ...] = (_ours, _yolo, _json, _images)


def _is_label_file(path: Path) -> bool:
    return _LABEL.match(_head_of(path)) is not None


def _head_of(path: Path) -> bytes:
    try:
        return read_regular(path, first=_HEAD_NBYTES)
    except OSError:
        return b""


def _files_below(folder: Path) -> Iterator[Path]:
    """Those of the folder first; hidden ones aside."""
    for inside, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(inside, name) for name in sorted(files) if not name.startswith("."))

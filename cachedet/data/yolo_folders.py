"""Where the images and label files of a YOLO data set lie: its data.yaml, and what exports make of
it.

Paths in a data.yaml are relative to `path`, to the file, to a folder of the machine it was made
on, or to nothing: what is there is taken, in this order, and said where it is not the first.
"""

from __future__ import annotations

import os
import reprlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cachedet.config.yaml_text import read_yaml
from cachedet.data.file_names import without_prefix
from cachedet.data.images import image_suffixes
from cachedet.data.regular_files import read_lines, read_regular
from cachedet.data.repairs import whole_number
from cachedet.data.sections import listed, require_distinct
from cachedet.errors import ConfigError, DatasetError

SPLITS = ("train", "val", "valid", "validation", "test")
_MOST_NBYTES = 1 << 20  # of a data.yaml: thousands of classes; PyYAML takes 8 s for it
NAME_FILES = ("classes.txt", "obj.names")
NO_LABELS = ("classes.txt", "notes.txt", "README.txt", "README.roboflow.txt", "README.dataset.txt")


@dataclass(frozen=True, kw_only=True)
class YoloSetup:
    """What a data.yaml says, or a folder that has none."""

    source: Path
    folder: Path  # of the data set
    classes: dict[int, str]  # by the number in label files
    splits: dict[str, list[str]] = field(default_factory=dict)
    path: str = ""  # that those of the splits are relative to
    has_keypoints: bool = False

    @classmethod
    def read(cls, source: Path) -> YoloSetup:
        """Raises DatasetError."""
        if source.is_dir():
            found = yaml_in(source)
            return cls.read(found) if found is not None else cls._of_folder(source)
        try:
            values = read_yaml(source, most_nbytes=_MOST_NBYTES)
        except ConfigError as error:
            raise DatasetError(str(error)) from error
        if not isinstance(values, dict):
            raise DatasetError(f"{source} is no data.yaml of YOLO: expected `names` and splits")
        splits = {
            str(key): _paths(values[key], f"{source}: `{key}`")
            for key in (*SPLITS, "minival")
            if values.get(key)
        }
        if not splits:
            raise DatasetError(f"{source} names no images: expected `train`, `val` or `test`")
        return cls(
            source=source,
            folder=source.parent,
            classes=_classes(values, source),
            splits=splits,
            path=_paths(values.get("path") or ".", f"{source}: `path`")[0],
            has_keypoints="kpt_shape" in values,
        )

    @classmethod
    def _of_folder(cls, folder: Path) -> YoloSetup:
        """As Label Studio exports it: classes.txt, images/ and labels/."""
        names = next(folder / name for name in NAME_FILES if (folder / name).is_file())
        lines = [line.strip() for line in read_lines(names)]
        while lines and not lines[-1]:
            lines.pop()
        splits = {
            name: [f"images/{name}"] for name in SPLITS if (folder / "images" / name).is_dir()
        }
        classes = _classes({"names": lines}, names)
        return cls(source=folder, folder=folder, classes=classes, splits=splits)


def yaml_in(folder: Path) -> Path | None:
    """The data.yaml of a folder, by whatever name: the one YAML file that has `names`."""
    for name in ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml"):
        if (folder / name).is_file():
            return folder / name
    others = sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    named = [path for path in others if path.is_file() and has_names(path)]
    return named[0] if len(named) == 1 else None


def has_names(path: Path) -> bool:
    """Whether a file has a line that begins with ``names:``, as each data.yaml does."""
    try:
        content = read_regular(path, first=_MOST_NBYTES)
    except OSError:
        return False
    return any(line.startswith((b"names:", b"names :")) for line in content.splitlines())


def is_bare_folder(folder: Path) -> bool:
    """Whether a folder is a YOLO data set without a data.yaml."""
    if not any((folder / name).is_file() for name in NAME_FILES):
        return False
    has_labels = any((folder / name).is_dir() for name in ("labels", "obj_train_data"))
    return has_labels or any(  # LabelImg: labels, images and classes.txt side by side
        path.with_suffix(".txt").is_file() for path in folder.iterdir() if _is_image(path)
    )


def _paths(value: Any, where: str) -> list[str]:
    paths = value if isinstance(value, list) else [value]
    if not all(isinstance(path, str) and path and "\0" not in path for path in paths):
        raise DatasetError(f"{where} needs a folder or a list of images, got {reprlib.repr(value)}")
    return paths


def _classes(values: dict[str, Any], where: Path) -> dict[int, str]:
    """By number. Raises DatasetError."""
    names = values.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise DatasetError(
            f"{where} needs `names` of the classes, as [cat, dog] or {{0: cat, 1: dog}}"
        )
    if not all(type(key) is int and key >= 0 for key in names):
        raise DatasetError(f"{where}: `names` needs whole numbers from 0 before the names")
    if nameless := [str(number) for number, name in names.items() if name is None]:
        raise DatasetError(
            f"{where}: `names` has no name for {len(nameless)} of its classes "
            f"({listed(nameless)}); write them, in quotes where they are words such as null"
        )
    classes = {int(number): str(name) for number, name in sorted(names.items())}
    require_distinct(classes, where)
    count = values.get("nc")
    number = count if isinstance(count, int) else whole_number(count)
    if count is not None and number != len(classes):
        raise DatasetError(
            f"{where}: `nc` is {reprlib.repr(count)}, and `names` has {len(classes)}; correct the "
            "one that is wrong"
        )
    return classes


@dataclass(frozen=True, kw_only=True)
class Found:
    """The images of one split."""

    images: list[Path]  # those of a list may be missing
    roots: list[Path]  # the folders that were searched; none of lists
    labels: list[Path]  # folders of label files, where data.yaml has images and none are there
    notes: list[str]


def find_images(setup: YoloSetup, split: str | None, images: Path | None) -> Found:
    """Raises DatasetError where there are none."""
    found: list[Path] = []
    roots, labels, notes, links = [], [], [], list[str]()
    for entry in setup.splits[split] if split is not None else ["images"]:
        places = list(dict.fromkeys(_places(entry, setup, split, images)))
        taken = next(filter(_has_images, places), None)
        if taken is None:
            raise DatasetError(_nowhere(entry, setup, split, places))
        as_written = [_tidy(setup.folder / path / entry) for path in (setup.path, "")]
        if split is not None and taken not in as_written:
            notes.append(f"{split}: {entry} is not there as it stands; taken is {taken}")
        beside = (place for place in map(_of_labels, places) if place not in places)
        labels += [next(filter(os.path.isdir, beside), _of_labels(taken))]
        if os.path.isdir(taken):
            roots.append(taken)
            found += list(images_below(taken, links))
        else:
            found += _listed_images(taken, setup)
    if not found:
        raise DatasetError(f"{setup.source}: the list of images of {split} is empty")
    if links:
        notes.append(
            f"folders that are links, in which no images were looked for: {len(links)} "
            f"({listed(links)}). Put the folders themselves there, or name each in the data.yaml"
        )
    return Found(images=sorted(set(found)), roots=roots, labels=labels, notes=notes)


def _nowhere(entry: str, setup: YoloSetup, split: str | None, places: Sequence[Path]) -> str:
    links: list[str] = []
    for place in places:
        next(images_below(place, links), None)
    linked = f" Folders that are links are not entered: {listed(links)}." if links else ""
    return (
        f"{setup.source}: no images of {split or 'the data set'} ({entry}); places that were "
        f"looked at: {len(places)} ({listed([str(place) for place in places])}).{linked} Correct "
        "the path (or `path`), or give the folder above it as --images"
    )


def images_below(folder: Path, links: list[str] | None = None) -> Iterator[Path]:
    """In all folders below; hidden files are none. Adds folders that are links to `links`."""
    for inside, folders, files in os.walk(folder):
        folders.sort()
        if links is not None:
            paths = (os.path.join(inside, name) for name in folders)
            links += filter(os.path.islink, paths)
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in image_suffixes():
                yield Path(inside, name)


def _places(entry: str, setup: YoloSetup, split: str | None, images: Path | None) -> Iterator[Path]:
    """Where an entry may lead, likely ones first."""
    given = entry.replace("\\", "/")
    parts = [part for part in PurePosixPath(given).parts if part not in ("..", ".", "/")]
    folders = [setup.folder, *([images] if images is not None else [])]
    for folder in folders:
        yield _tidy(folder / setup.path / given)
        yield _tidy(folder / given)
        for start in range(max(len(parts) - 1, 1)):  # of other machines; the last part says little
            yield folder.joinpath(*parts[start:])
    yield _tidy(Path(setup.path) / given)
    for folder in folders:
        if split is not None:
            yield from (folder / split / "images", folder / "images" / split)
    if split is None:
        yield setup.folder / "obj_train_data"  # of darknet, as CVAT exports it
        yield setup.folder
    if split is not None and parts and not _is_of_others(parts[-1], setup, split):
        yield from (folder / parts[-1] for folder in folders)
    if images is not None and any(map(_is_image, images.glob("*"))):
        yield images


def _is_of_others(name: str, setup: YoloSetup, split: str) -> bool:
    """Whether a path of another split ends so, too: the name alone would be that of both."""
    others = (each for key, entries in setup.splits.items() if key != split for each in entries)
    return any(PurePosixPath(other.replace("\\", "/")).name == name for other in others)


def _tidy(path: Path) -> Path:
    return Path(os.path.normpath(path))


def _has_images(place: Path) -> bool:
    """Whether it is a list, or a folder with an image in it."""
    if os.path.isdir(place):
        return next(images_below(place), None) is not None
    return os.path.isfile(place)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in image_suffixes() and path.is_file()


def _listed_images(listing: Path, setup: YoloSetup) -> list[Path]:
    """Of a text file with one image a line."""
    if listing.suffix != ".txt":
        raise DatasetError(f"{setup.source}: expected a folder or a .txt of images, got {listing}")
    bases = [listing.parent, setup.folder / setup.path, setup.folder]
    found = []
    for line in filter(None, map(str.strip, read_lines(listing))):
        given = line.replace("\\", "/")
        parts = [part for part in PurePosixPath(given).parts if part != "."]
        tails = [Path(given), *(Path(*parts[start:]) for start in range(1, min(len(parts), 4)))]
        places = (_tidy(base / tail) for tail in tails for base in bases)
        first = _tidy(bases[0] / given)
        found.append(next(filter(os.path.isfile, places), first))
    strange = [
        str(path)
        for path in found
        if path.suffix.lower() not in image_suffixes() or "\0" in str(path)
    ]
    if strange:
        raise DatasetError(
            f"{listing}: lines that name no image: {len(strange)} ({listed(strange)}). Give one "
            "image a line"
        )
    return found


class LabelFiles:
    """Which label file belongs to which image."""

    def __init__(self, setup: YoloSetup, found: Found) -> None:
        self._used: set[Path] = set()
        folders = [*map(_of_labels, found.roots), *(found.labels if found.roots else [])]
        if not setup.splits:
            folders += [setup.folder / "labels", setup.folder / "obj_train_data"]
        own = ((image, _own_label(image)) for image in found.images)
        self._own = {image: path for image, path in own if path is not None}
        self._owned = set(self._own.values())
        self._bare = Counter(_bare_name(path) for path in found.images if path not in self._own)
        by_name: dict[str, list[Path]] = {}
        for path in (p for each in dict.fromkeys(map(_tidy, folders)) for p in _texts_below(each)):
            by_name.setdefault(without_prefix(path.name), []).append(path)
        self._by_name = {name: list(dict.fromkeys(paths)) for name, paths in by_name.items()}

    def of(self, image: Path) -> Path | None:
        """None where there is none: the image is background."""
        path = self._own.get(image) or self._by_bare_name(image)
        if path is not None:
            self._used.add(path)
        return path

    def _by_bare_name(self, image: Path) -> Path | None:
        """The only one of its name, where the image is the only one that lacks its own."""
        name = _bare_name(image)
        named = self._by_name.get(name, [])
        is_free = len(named) == 1 and named[0] not in self._owned and self._bare[name] == 1
        return named[0] if is_free and os.path.isfile(named[0]) else None

    @property
    def without_image(self) -> list[Path]:
        """Those that `of` was asked for by no image."""
        held = {path for paths in self._by_name.values() for path in paths}
        return sorted(held - self._used)


def _own_label(image: Path) -> Path | None:
    """The label file in the place that belongs to the image."""
    beside = image.with_suffix(".txt")
    return next(filter(os.path.isfile, (_of_labels(beside), beside)), None)


def _bare_name(image: Path) -> str:
    return without_prefix(f"{image.stem}.txt")


def image_folder_of(label: Path) -> Path:
    """…/labels/train/a.txt -> …/images/train, in the last folder of that name."""
    parts = list(label.parent.parts)
    if "labels" in parts:
        parts[len(parts) - 1 - parts[::-1].index("labels")] = "images"
    return Path(*parts)


def _of_labels(path: Path) -> Path:
    """…/images/train/a.txt -> …/labels/train/a.txt, in the last folder of that name."""
    parts = list(path.parts)
    if "images" not in parts:
        return path
    parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def _texts_below(folder: Path) -> Sequence[Path]:
    return [
        Path(inside, name)
        for inside, _, files in os.walk(folder)
        for name in files
        if name.endswith(".txt") and not name.startswith(".") and name not in NO_LABELS
    ]

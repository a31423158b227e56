"""Pascal VOC: a folder of XML files, one an image.

Corners: PASCAL's own files count pixels from 1, and their boxes hold both corner pixels, so that 1
is subtracted from xmin and ymin; they name VOC20.. as their database. All other tools (Roboflow,
LabelImg, Label Studio, CVAT) write the corners that they show, at most rounded: taken as they
stand. Either way boxes are within half a pixel of the same data set as COCO. `difficult` objects
are ignored in scoring VOC: they become crowd boxes. A `<size>` of 0, or one that the boxes and the
image file contradict, is that of the file.
"""

from __future__ import annotations

import math
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from xml.etree.ElementTree import Element

from cachedet.config.run import Rotated
from cachedet.data.file_names import without_prefix
from cachedet.data.images import image_suffixes, read_sizes
from cachedet.data.regular_files import read_lines
from cachedet.data.sections import (
    ROTATED_ADVICE,
    DescribedBox,
    DescribedImage,
    Refusals,
    Sections,
    choose_split,
    listed,
    make_content,
    require_distinct,
    turned_box,
)
from cachedet.data.xml_files import read_xml, root_name, text_of
from cachedet.errors import DatasetError
from cachedet.structures import SizeHW

_CLASS_FILES = ("labelmap.txt", "classes.txt", "labels.txt")
_LISTS = Path("ImageSets", "Main")
_SPLITS = ("train", "val", "valid", "trainval", "test")
_FOLDERS = ("JPEGImages", "images")
_LOOKED_AT = 500  # folders, for a first XML file: it may be any folder of the user's
_SLACK = 1.0  # pixels: a box may end so far beyond an image's border
_LARGER = 1.05  # an image of the ratio of <size> that is so much larger was resized
_FLAGGED = re.compile(r"(?P<name>.+?)\s+(-1|0|1)")  # a line of a list that tells one class
_TRUE = ("1", "true", "yes")
_TRIED = 20  # XML files: those of other tools may come first


@dataclass(frozen=True, kw_only=True)
class _Object:
    name: str
    box: DescribedBox  # its category id is not known before all files are read
    is_rotated: bool


@dataclass(frozen=True, kw_only=True)
class _File:
    """One XML file."""

    path: Path
    file_name: str
    size_hw: SizeHW | None
    objects: Sequence[_Object]


def read_voc(source: Path, *, split: str | None, images: Path | None, rotated: Rotated) -> Sections:
    """The data set of a folder of XML files, in it or in Annotations/.

    Splits are the lists of ImageSets/Main, or folders train/, valid/ and test/ as Roboflow makes.
    Classes stand in labelmap.txt or classes.txt; without either they are the names in the files of
    all splits, sorted.

    Raises DatasetError, after all files were read.
    """
    files = _files_of(source)
    split = choose_split(split, [] if list(files) == [""] else list(files), source)
    refusals = Refusals(source)
    chosen = sorted(set(files[split or ""]))
    of_all = filter(os.path.isfile, chain.from_iterable(files.values()))  # they tell the classes
    by_path = {
        path: _read_file(path, source, refusals, rotated=rotated)
        for path in sorted({*of_all, *chosen})
    }
    classes = _classes_file(source)
    if classes is None:
        names = {one.name for file in by_path.values() for one in file.objects}
        classes = dict(enumerate(sorted(names), start=1))
    ids = {name: number for number, name in classes.items()}
    _require_known(by_path.values(), ids, refusals)
    refusals.settle()
    root = images or _images_of(source)
    read = [by_path[path] for path in chosen]
    described, notes = _describe(read, ids, root, source, refusals)
    refusals.settle()
    if not (source / _LISTS).is_dir():
        notes += _note_others({one.file_name for one in described}, root)
    notes += _note_objects([one for file in read for one in file.objects])
    return Sections(
        content=make_content(described, classes),
        source=source,
        kind="Pascal VOC, a folder of XML",
        split=split,
        root=root,
        are_ids_ours=True,
        notes=tuple(notes),
    )


def _note_objects(objects: Sequence[_Object]) -> list[str]:
    difficult = sum(one.box.is_crowd for one in objects)
    rotated = sum(one.is_rotated for one in objects)
    return [
        *([f"`difficult` objects taken as crowd boxes: {difficult}"] if difficult else []),
        *([f"rotated boxes taken as the box around each: {rotated}"] if rotated else []),
    ]


def is_voc(folder: Path) -> bool:
    """Whether a folder holds XML files of VOC, perhaps in the folders of its splits.

    Raises DatasetError where files with entities are all that looks like it.
    """
    unread: list[DatasetError] = []
    for path in islice(_xml_below(folder, most=_LOOKED_AT), _TRIED):
        try:
            if root_name(path) == "annotation":
                return True
        except DatasetError as error:  # one file; it is named where all are read
            unread.append(error)
    if unread:
        raise unread[0]
    return False


def _files_of(source: Path) -> dict[str, list[Path]]:
    """XML files by split; one split of no name where there are none."""
    folder = source / "Annotations" if (source / "Annotations").is_dir() else source
    lists = {
        path.stem: [line.strip() for line in read_lines(path) if line.strip()]
        for path in sorted((source / _LISTS).glob("*.txt"))
    }
    of_splits = {
        name: [_listed_file(line, folder) for line in lines]
        for name, lines in lists.items()
        if not _is_of_class(name, lines, lists)
    }
    if of_splits:
        return of_splits
    folders = {name: list(_xml_below(source / name)) for name in _SPLITS}
    found = {name: paths for name, paths in folders.items() if paths}
    return found or {"": list(_xml_below(folder))}


def _is_of_class(name: str, lines: Sequence[str], known: Iterable[str]) -> bool:
    """Whether a list says which images of a split show one class, as cat_train.txt does."""
    if "_" not in name:
        return False
    return name.rsplit("_", 1)[1] in known or all(map(_FLAGGED.fullmatch, lines))


def _listed_file(line: str, folder: Path) -> Path:
    """The XML file of a line, which may have spaces, quotes, or a flag behind the name."""
    flagged = _FLAGGED.fullmatch(line)
    names = [line, *([flagged["name"]] if flagged is not None else [])]
    paths = [folder / (name.strip("\"'") + ".xml") for name in names]
    return paths[0] if len(paths) == 1 or paths[0].is_file() else paths[1]


def _xml_below(folder: Path, *, most: int | None = None) -> Iterator[Path]:
    """In the first `most` folders; hidden ones are passed over."""
    for inside, folders, names in islice(os.walk(folder), most):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(".xml") and not name.startswith("."):
                yield Path(inside, name)


def _images_of(source: Path) -> Path:
    """Where the images lie, as far as the folders tell."""
    for folder in (source, source.parent):
        for name in _FOLDERS:
            if (folder / name).is_dir():
                return folder / name
    return source


def _classes_file(source: Path) -> dict[int, str] | None:
    """Category id -> name; None where there is no such file."""
    places = (folder / name for folder in (source, source.parent) for name in _CLASS_FILES)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None
    lines = [line.split(":")[0].strip() for line in read_lines(path) if not line.startswith("#")]
    names = [line for line in lines if line and line != "background"]
    classes = dict(enumerate(names, start=1))
    require_distinct(classes, path)
    return classes


def _require_known(files: Iterable[_File], ids: Mapping[str, int], refusals: Refusals) -> None:
    """Adds to the refusals."""
    for file in files:
        for one in file.objects:
            if one.name not in ids:
                refusals.add(
                    "objects of a class that the file of classes lacks",
                    f"{one.box.place}: {one.name}",
                    advice="Add the names, or correct the objects",
                )


def _read_file(path: Path, source: Path, refusals: Refusals, *, rotated: Rotated) -> _File:
    place = path.relative_to(source).as_posix()
    if not os.path.isfile(path):
        refusals.add("XML files of the split that are not there", place, advice=_MISSING)
        return _File(path=path, file_name="", size_hw=None, objects=())
    try:
        root = read_xml(path)
    except DatasetError as error:
        reason = str(error).removeprefix(f"{path} ")
        refusals.add("XML files that cannot be used", f"{place} {reason}", advice=_UNREAD)
        return _File(path=path, file_name="", size_hw=None, objects=())
    if root.tag != "annotation":
        refusals.add("XML files that are not VOC", f"{place}: <{root.tag}>", advice=_NOT_VOC)
    shift = 1.0 if _counts_from_one(root) else 0.0
    objects = []
    for number, element in enumerate(root.iterfind("object"), start=1):
        where = f"{place} object {number}"
        xywh = _box_of(element, where, shift, refusals, rotated=rotated)
        name = text_of(element, "name")
        if name is None:
            refusals.add("objects without a <name>", where, advice=_NAME)
        elif xywh is not None:
            is_crowd = (text_of(element, "difficult") or "").lower() in _TRUE
            box = DescribedBox(category_id=0, xywh=xywh, place=where, is_crowd=is_crowd)
            is_rotated = element.find("robndbox") is not None
            objects.append(_Object(name=name, box=box, is_rotated=is_rotated))
    return _File(
        path=path,
        file_name=(text_of(root, "filename") or path.stem).replace("\\", "/"),
        size_hw=_size_of(root),
        objects=objects,
    )


def _counts_from_one(root: Element) -> bool:
    """Whether it is a file of PASCAL's own."""
    texts = (text_of(root, "source/database"), text_of(root, "source/annotation"))
    return any("VOC20" in text or "PASCAL VOC20" in text for text in texts if text)


def _size_of(root: Element) -> SizeHW | None:
    sides = []
    for name in ("height", "width"):
        number = _number(text_of(root, f"size/{name}"))
        sides.append(0 if number is None else int(number))
    return (sides[0], sides[1]) if min(sides) > 0 else None


def _box_of(
    element: Element,
    place: str,
    shift: float,
    refusals: Refusals,
    *,
    rotated: Rotated,
) -> tuple[float, float, float, float] | None:
    """In pixels; None where it is of no use, which is noted as a refusal."""
    tilted = element.find("robndbox")
    if tilted is not None:
        return _outer_box(tilted, place, refusals, rotated=rotated)
    if element.find("bndbox") is None:
        refusals.add("objects without a <bndbox>", place, advice=_BNDBOX)
        return None
    texts = [text_of(element, f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
    numbers = [_number(text) for text in texts]
    if None in numbers:
        refusals.add("boxes of which a corner is no number", f"{place}: {texts}", advice=_CORNERS)
        return None
    left, top, right, bottom = (number for number in numbers if number is not None)
    return left - shift, top - shift, right - left + shift, bottom - top + shift


def _outer_box(
    element: Element, place: str, refusals: Refusals, *, rotated: Rotated
) -> tuple[float, float, float, float] | None:
    texts = [text_of(element, name) for name in ("cx", "cy", "w", "h", "angle")]
    numbers = [number for number in map(_number, texts) if number is not None]
    if rotated == "refuse":
        refusals.add("rotated boxes (<robndbox>)", place, advice=ROTATED_ADVICE)
    elif len(numbers) < 5:
        refusals.add("rotated boxes without their numbers", f"{place}: {texts}", advice=_CORNERS)
    else:
        return turned_box(*numbers)
    return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _describe(
    files: Sequence[_File],
    ids: Mapping[str, int],
    root: Path,
    source: Path,
    refusals: Refusals,
) -> tuple[list[DescribedImage], list[str]]:
    """What the files say, with names and sizes of the images that are there; and notes."""
    names = [_image_of(file, root, source) for file in files]
    _require_one_file_each(files, names, source, refusals)
    sizes = read_sizes([root / name for name in names])
    described, wrong, unread = [], [], []
    for file, name, size in zip(files, names, sizes, strict=True):
        boxes = [replace(one.box, category_id=ids[one.name]) for one in file.objects]
        stated = file.size_hw
        if size is not None and stated != size and _is_of_file(stated, size, boxes):
            place = f"{file.path.name}: {_shown(stated)}, the image {_shown(size)}"
            if stated is not None and boxes and _is_enlarged(stated, size, boxes):
                refusals.add(_RESIZED, place, advice=_RESIZED_ADVICE)
            wrong.append(place)
            stated = size
        if stated is None:
            unread.append(name)
        described.append(DescribedImage(file_name=name, size_hw=stated, boxes=boxes))
    notes = []
    if wrong:
        notes.append(f"<size> corrected by the image file: {len(wrong)} ({listed(wrong)})")
    if unread:
        notes.append(
            f"images without a <size> that cannot be read: {len(unread)} ({listed(unread)}); their "
            "boxes are left out. Repair the files"
        )
    return described, notes


def _require_one_file_each(
    files: Sequence[_File], names: Sequence[str], source: Path, refusals: Refusals
) -> None:
    """Adds to the refusals."""
    first: dict[str, Path] = {}
    for file, name in zip(files, names, strict=True):
        other = first.setdefault(posixpath.normpath(name), file.path)
        if other != file.path:
            places = [path.relative_to(source).as_posix() for path in (other, file.path)]
            what, place = "images that two XML files describe", f"{name}: {' and '.join(places)}"
            refusals.add(what, place, advice=_TWICE)


def _note_others(names: set[str], root: Path) -> list[str]:
    """Images beside those that have an XML file."""
    others = sorted(
        name
        for folder in {posixpath.dirname(name) for name in names}
        for path in (root / folder).glob("*")
        if path.suffix.lower() in image_suffixes() and not path.name.startswith(".")
        if (name := posixpath.join(folder, path.name)) not in names
    )
    if not others:
        return []
    return [
        f"images without an XML file: {len(others)} ({listed(others)}); they are no part of the "
        "data set. An XML file without objects makes one background"
    ]


def _is_of_file(stated: SizeHW | None, size: SizeHW, boxes: Sequence[DescribedBox]) -> bool:
    """Whether the image's own size is the one that the boxes were drawn in.

    Not where the stated one is it turned by 90 degrees: then the boxes are, too.
    """
    if stated is not None and stated == size[::-1]:
        return False
    return _are_inside(boxes, size)


def _is_enlarged(stated: SizeHW, size: SizeHW, boxes: Sequence[DescribedBox]) -> bool:
    """Whether the image is the annotated one made larger: of its ratio, the boxes in `<size>`."""
    scale = size[1] / stated[1]
    has_ratio = abs(stated[0] * scale - size[0]) <= 1
    return scale >= _LARGER and has_ratio and _are_inside(boxes, stated)


def _are_inside(boxes: Sequence[DescribedBox], size: SizeHW) -> bool:
    height, width = size
    corners = [(box.xywh[0] + box.xywh[2], box.xywh[1] + box.xywh[3]) for box in boxes]
    return all(x <= width + _SLACK and y <= height + _SLACK for x, y in corners)


def _shown(size: SizeHW | None) -> str:
    return "0x0" if size is None else f"{size[1]}x{size[0]}"


def _image_of(file: _File, root: Path, source: Path) -> str:
    """The name of its image from `root` on: the one that is there, else as the file has it."""
    stated = [file.file_name, posixpath.basename(file.file_name)]
    beside = os.path.relpath(file.path.parent, root).replace(os.sep, "/")
    inside = file.path.parent.relative_to(source).as_posix()
    folders = [] if beside.startswith("..") else [beside]
    folders += [inside.removeprefix("Annotations").lstrip("/"), "", *_FOLDERS]
    folders += [f"{inside}/{folder}" for folder in _FOLDERS]
    names = list(dict.fromkeys([*stated, *map(without_prefix, stated)]))
    endings = [form for each in sorted(image_suffixes()) for form in (each, each.upper())]
    bare = [each for each in (*names, file.path.stem) if not _has_suffix(each)]
    names += [each + ending for each in dict.fromkeys(bare) for ending in endings]
    for name in names:
        for folder in dict.fromkeys(folders):
            candidate = posixpath.normpath(posixpath.join(folder, name))
            if os.path.isfile(root / candidate):
                return candidate
    return file.file_name


def _has_suffix(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in image_suffixes()


_MISSING = "Bring the files, or correct the list in ImageSets/Main"
_RESIZED = "images that were made larger after their boxes were drawn"
_RESIZED_ADVICE = (
    "They have the ratio of <size>, and all boxes lie inside it: bring the images of that size, or "
    "scale the boxes; where only <size> is wrong, write 0 in it"
)
_UNREAD = "Repair or remove them"
_TWICE = "Remove one of the two, or correct its <filename>"
_NOT_VOC = "Move other XML files out of the folder"
_NAME = "Name their classes"
_BNDBOX = "Draw the boxes, or remove the objects"
_CORNERS = "Write the corners in pixels"

"""CVAT for images 1.1: one XML file with boxes, polygons and masks in pixels.

Boxes are taken as they stand. Polygons and masks become masks and the boxes around them. Labels
keep the order of the task, which counts from 1. Everything else that CVAT draws (points, lines,
ellipses, cuboids, skeletons) is left out and counted.
"""

from __future__ import annotations

import math
import os
import posixpath
import re
from collections import Counter
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from cachedet.config.run import Rotated
from cachedet.data.file_names import without_prefix
from cachedet.data.images import image_suffixes
from cachedet.data.masks import MOST_PIXELS, encode_bitmap, rle_of
from cachedet.data.sections import (
    ROTATED_ADVICE,
    DescribedBox,
    DescribedImage,
    Refusals,
    Sections,
    box_of_outline,
    choose_split,
    make_content,
    require_distinct,
    turned_box,
)
from cachedet.data.xml_files import read_xml, text_of
from cachedet.errors import DatasetError
from cachedet.structures import SizeHW

_SHAPES = ("box", "polygon", "mask")
_NO_SUBSET = "default"  # as CVAT calls it
_LEFT_OUT = ("points", "polyline", "ellipse", "cuboid", "skeleton")


def read_cvat(
    source: Path, *, split: str | None, images: Path | None, rotated: Rotated
) -> Sections:
    """The data set of a CVAT XML; the subsets of a project are its splits.

    Raises DatasetError, after the whole file was read.
    """
    root = read_xml(source)
    elements = root.findall("image")
    if root.find("track") is not None:
        raise DatasetError(
            f"{source} is CVAT for video ({len(root.findall('track'))} tracks): export the task as "
            '"CVAT for images 1.1", which has each frame as an image'
        )
    if not elements:
        raise DatasetError(f"{source}: expected <image> elements of CVAT for images, found none")
    split = _choose_subset(split, root, source)
    classes = _classes(root, source)
    folder = images or _images_of(source)
    reader = _Reader(source, {name: number for number, name in classes.items()}, rotated)
    described = [
        reader.read_image(one, folder)
        for one in elements
        if split is None or (one.get("subset") or _NO_SUBSET) == split
    ]
    reader.refusals.settle()
    return Sections(
        content=make_content(described, classes),
        source=source,
        kind="CVAT for images",
        split=split,
        root=folder,
        are_ids_ours=True,
        notes=reader.notes(),
    )


def _choose_subset(split: str | None, root: Element, source: Path) -> str | None:
    subsets = sorted({one.get("subset", "") for one in root.iterfind("image")})
    known = [] if subsets == [""] else [subset or _NO_SUBSET for subset in subsets]
    return choose_split(split, list(dict.fromkeys(known)), source)


def _classes(root: Element, source: Path) -> dict[int, str]:
    """In the order of the task; without its `<meta>` those that are used, by name."""
    labels = root.iterfind("meta//labels/label")
    tops = [one for one in labels if one.find("parent") is None]  # others: a skeleton's points
    names = [text for one in tops if (text := text_of(one, "name")) is not None]
    if not names:
        used = {shape.get("label", "") for image in root.iterfind("image") for shape in image}
        names = sorted(used - {""})
    classes = dict(enumerate(names, start=1))
    require_distinct(classes, source)
    if not classes:
        raise DatasetError(f"{source} has no labels: expected <meta> with <labels>")
    return classes


def _images_of(source: Path) -> Path:
    folder = source.parent / "images"
    return folder if folder.is_dir() else source.parent


class _Reader:
    """Reads one image after the other, and keeps what is to be said of all."""

    def __init__(self, source: Path, ids: dict[str, int], rotated: Rotated) -> None:
        self.refusals = Refusals(source)
        self._ids = ids
        self._rotated = rotated
        self._counts = Counter[str]()

    def notes(self) -> tuple[str, ...]:
        """What was left out or changed."""
        left = ", ".join(f"{self._counts[kind]} {kind}" for kind in _LEFT_OUT if self._counts[kind])
        turned = self._counts["turned"]
        return (
            *([f"shapes that have no box left out: {left}"] if left else []),
            *([f"rotated boxes taken as the box around each: {turned}"] if turned else []),
        )

    def read_image(self, element: Element, folder: Path) -> DescribedImage:
        """Boxes that are of no use are noted as refusals."""
        name = element.get("name", "").replace("\\", "/")
        sides = [element.get(side, "") for side in ("height", "width")]
        is_size = all(re.fullmatch("0*[1-9][0-9]{0,8}", side) for side in sides)
        size = (int(sides[0]), int(sides[1])) if is_size else None
        if not name or size is None:
            place = f"id {element.get('id')}: {name} {sides[1]}x{sides[0]}"
            self.refusals.add("images without a name or size", place, advice=_IMAGE)
        boxes = []
        for number, shape in enumerate(element, start=1):
            if shape.tag in _SHAPES:
                box = self._read_shape(shape, size or (0, 0), f"{name} {shape.tag} {number}")
                boxes += [box] if box is not None else []
            self._counts[str(shape.tag)] += 1
        file_name = _find(name, element.get("subset", ""), folder)
        return DescribedImage(file_name=file_name, size_hw=size, boxes=boxes)

    def _read_shape(self, shape: Element, size_hw: SizeHW, place: str) -> DescribedBox | None:
        label = self._ids.get(shape.get("label", ""))
        if label is None:
            named = f"{place}: {shape.get('label')}"
            self.refusals.add("shapes of a label that <meta> lacks", named, advice=_LABEL)
            return None
        try:
            if shape.tag == "polygon":
                pairs = [pair.split(",") for pair in shape.get("points", "").split(";")]
                points = [_finite(value) for x, y in pairs for value in (x, y)]
                if len(points) < 6:
                    raise ValueError
                return box_of_outline(points, category_id=label, place=place)
            if shape.tag == "mask":
                return _box_of_mask(shape, size_hw, category_id=label, place=place)
            return self._read_box(shape, category_id=label, place=place)
        except (OverflowError, ValueError):
            self.refusals.add("shapes whose numbers cannot be read", place, advice=_NUMBERS)
            return None

    def _read_box(self, shape: Element, *, category_id: int, place: str) -> DescribedBox | None:
        """Raises ValueError."""
        left, top, right, bottom = (
            _finite(shape.get(key, "")) for key in ("xtl", "ytl", "xbr", "ybr")
        )
        angle = _finite(shape.get("rotation", "0"))
        xywh = (left, top, right - left, bottom - top)
        if angle % 360:
            if self._rotated == "refuse":
                named = f"{place}: {angle:g} degrees"
                self.refusals.add("rotated boxes", named, advice=ROTATED_ADVICE)
                return None
            self._counts["turned"] += 1
            centre = ((left + right) / 2, (top + bottom) / 2)
            xywh = turned_box(*centre, right - left, bottom - top, math.radians(angle))
        return DescribedBox(category_id=category_id, xywh=xywh, place=place)


def _box_of_mask(shape: Element, size_hw: SizeHW, *, category_id: int, place: str) -> DescribedBox:
    """Run lengths, row by row, of a window of the image. Raises ValueError."""
    left, top, width, height = (
        int(shape.get(key, "")) for key in ("left", "top", "width", "height")
    )
    runs = np.array([int(run) for run in shape.get("rle", "").split(",")], dtype=np.int64)
    is_inside = left >= 0 and top >= 0 and min(width, height) > 0
    is_inside &= left + width <= size_hw[1] and top + height <= size_hw[0]
    if not is_inside or size_hw[0] * size_hw[1] > MOST_PIXELS:
        raise ValueError("it reaches beyond the image")
    pixels = width * height
    if runs.min() < 0 or runs.max() > pixels or runs.sum() != pixels:
        raise ValueError("its runs do not cover it")
    window = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    bitmap = np.zeros(size_hw, dtype=np.bool_)
    bitmap[top : top + height, left : left + width] = window
    return DescribedBox(
        category_id=category_id,
        xywh=(float(left), float(top), float(width), float(height)),
        place=place,
        segmentation=rle_of(encode_bitmap(bitmap), size_hw),
        area=float(window.sum()),
    )


def _finite(text: str) -> float:
    """Raises ValueError."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _find(name: str, subset: str, folder: Path) -> str:
    """The name of the file that is there, else as it stands."""
    folders = ("", "images", subset, posixpath.join("images", subset))
    places = [*(posixpath.join(each, name) for each in folders), without_prefix(name)]
    if posixpath.splitext(name)[1].lower() not in image_suffixes():  # a frame of a video
        endings = [form for each in sorted(image_suffixes()) for form in (each, each.upper())]
        places += [place + ending for ending in endings for place in places]
    return next((place for place in places if os.path.isfile(folder / place)), name)


_IMAGE = "Export the task again"
_LABEL = "Add the labels to <meta>, or correct the shapes"
_NUMBERS = (
    "A box has xtl, ytl, xbr and ybr; a polygon points of 3 or more x,y; a mask left, top, width "
    "and height inside its image, and an rle that covers them"
)

"""YOLO label files: boxes and outlines in fractions of the image, one object a line.

A line is ``class x y width height`` (centre and sides), or ``class x1 y1 x2 y2 x3 y3 ...``, the
outline of an object, which becomes its mask and the box around it. Class number n becomes category
id n + 1, as COCO counts from 1. The fractions are those of the upright image, after its EXIF
orientation, as ultralytics takes them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cachedet.config.run import Rotated
from cachedet.data.images import read_sizes
from cachedet.data.regular_files import read_regular
from cachedet.data.sections import (
    ROTATED_ADVICE,
    DescribedBox,
    DescribedImage,
    Refusals,
    Sections,
    box_of_outline,
    choose_split,
    listed,
    make_content,
)
from cachedet.data.yolo_folders import LabelFiles, YoloSetup, find_images, image_folder_of
from cachedet.errors import DatasetError
from cachedet.structures import SizeHW

_MOST_NBYTES = 64 << 20  # of a label file
_TOLERANCE = 0.01  # of the image's side: tools round, and draw a little beyond the border
_SLACK = 1.5  # pixels: corners of a rotated box are rounded, too
_MOSTLY = 0.9  # of the outlines of four points are rectangles where boxes are meant


def read_yolo(
    source: Path, *, split: str | None, images: Path | None, rotated: Rotated
) -> Sections:
    """The data set of a data.yaml, or of a folder with classes.txt, images/ and labels/.

    File names start from `images`, without it from the folder of the data set.

    Raises DatasetError, after all label files were read.
    """
    setup = YoloSetup.read(source)
    split = choose_split(split, list(setup.splits), source)
    found = find_images(setup, split, images)
    root = images or _root_of(found.images, setup.folder)
    names = _names_inside(root, found.images, is_given=images is not None)
    labels = LabelFiles(setup, found)
    of_image = [labels.of(path) for path in found.images]
    orphans = labels.without_image
    _require_labels(of_image, orphans, found.images, source)
    sizes = read_sizes(found.images)
    lines = _Lines.read(of_image, sizes, setup)
    described = [
        DescribedImage(file_name=name, size_hw=size, boxes=boxes)
        for name, size, boxes in zip(
            names, sizes, lines.boxes(len(names), rotated=rotated), strict=True
        )
    ]
    described += _missing_images(orphans, names, found.images, root)
    return Sections(
        content=make_content(described, {n + 1: name for n, name in setup.classes.items()}),
        source=source,
        kind="YOLO data set",
        folders=listed([str(each) for each in found.roots]) or "a list",
        split=split,
        root=root,
        are_ids_ours=True,
        notes=(*found.notes, *_notes(names, of_image, orphans, sizes), *lines.notes),
    )


def _root_of(images: Sequence[Path], folder: Path) -> Path:
    """The folder of the data set, or the one that holds all images where they lie elsewhere."""
    paths = [os.path.abspath(path) for path in images]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    is_inside = os.path.commonpath([common, os.path.abspath(folder)]) == os.path.abspath(folder)
    return folder if is_inside else Path(common)


def _names_inside(root: Path, images: Sequence[Path], *, is_given: bool) -> list[str]:
    """File names from `root` on. Raises DatasetError where they lie elsewhere."""
    for resolve in (os.path.abspath, os.path.realpath):
        start = os.path.join(resolve(root), "")
        paths = [resolve(path) for path in images]
        outside = [path for path in paths if not path.startswith(start)]
        if not outside:
            return [Path(path[len(start) :]).as_posix() for path in paths]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    raise DatasetError(
        f"{'--images ' if is_given else ''}{root} does not hold {len(outside)} images of the data "
        f"set ({listed(outside)}); give --images {common}"
    )


def _require_labels(
    of_image: Sequence[Path | None], orphans: Sequence[Path], images: Sequence[Path], source: Path
) -> None:
    """Raises DatasetError where no image has any, which is never meant."""
    if any(of_image):
        return
    if not any(map(os.path.isfile, images)):
        raise DatasetError(
            f"{source}: none of {len(images)} listed images is there "
            f"({listed(list(map(str, images)))}); correct the list, or bring the images"
        )
    there = f", and {len(orphans)} of other names ({listed(list(map(str, orphans)))})"
    raise DatasetError(
        f"{source}: none of {len(of_image)} images has a label file{there if orphans else ''}: "
        "expected labels/ beside images/ with the same names, or a .txt beside each image"
    )


def _missing_images(
    orphans: Sequence[Path], names: Sequence[str], images: Sequence[Path], root: Path
) -> list[DescribedImage]:
    """What label files without an image tell of: images that are not there, to be named so."""
    suffixes = [path.suffix for path in images]
    usual = max(sorted(set(suffixes)), key=suffixes.count)
    taken = set(names)
    missing = []
    for path in orphans:
        folder = os.path.relpath(image_folder_of(path), root)
        if folder.startswith("..") or not os.path.isdir(root / folder):
            folder = os.path.dirname(names[0])
        missing.append(Path(folder, path.stem + usual).as_posix())
    return [
        DescribedImage(file_name=name, size_hw=None)
        for name in dict.fromkeys(missing)
        if name not in taken
    ]


def _notes(
    names: Sequence[str],
    of_image: Sequence[Path | None],
    orphans: Sequence[Path],
    sizes: Sequence[SizeHW | None],
) -> list[str]:
    """What does not fit together; nothing of it ends the reading."""
    notes = []
    bare = [name for name, path in zip(names, of_image, strict=True) if path is None]
    if bare:
        notes.append(
            f"images without a label file: {len(bare)} ({listed(bare)}); they are background. "
            "Where they show objects, look for their label files"
        )
    if orphans:
        notes.append(
            f"label files without an image: {len(orphans)} ({listed([p.name for p in orphans])}); "
            "bring the images, or remove the label files"
        )
    matched = [
        name
        for name, path in zip(names, of_image, strict=True)
        if path is not None and path.stem != Path(name).stem
    ]
    if matched:
        notes.append(
            f"label files found by the name without Label Studio's prefix: {len(matched)} "
            f"({listed(matched)})"
        )
    unread = [name for name, size in zip(names, sizes, strict=True) if size is None]
    if unread:
        notes.append(
            f"images that no size can be read of: {len(unread)} ({listed(unread)}); their boxes "
            "are left out. Repair the files"
        )
    return notes


@dataclass(kw_only=True)
class _Lines:
    """The objects of all label files, each line by itself."""

    refusals: Refusals
    classes: dict[int, str]
    places: list[tuple[int, str, int]] = field(default_factory=list)  # image, place, class
    values: list[list[float]] = field(default_factory=list)  # pixels: cxcywh, or points
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(
        cls, of_image: Sequence[Path | None], sizes: Sequence[SizeHW | None], setup: YoloSetup
    ) -> _Lines:
        """Raises DatasetError that names all kinds of bad lines."""
        lines = cls(refusals=Refusals(setup.source), classes=setup.classes)
        for number, (path, size) in enumerate(zip(of_image, sizes, strict=True)):
            if path is not None:
                lines._read_file(number, path, size, has_keypoints=setup.has_keypoints)
        lines.refusals.settle()
        if setup.has_keypoints:
            lines.notes.append("keypoints (`kpt_shape`) are not read: the boxes are")
        return lines

    def _read_file(
        self, number: int, path: Path, size: SizeHW | None, *, has_keypoints: bool
    ) -> None:
        name = f"{path.parent.name}/{path.name}"
        try:
            content = read_regular(path, most=_MOST_NBYTES).removeprefix(b"\xef\xbb\xbf")
        except OSError as error:
            reason = error.strerror or str(error)
            self.refusals.add("label files that cannot be read", f"{name}: {reason}", advice=_READ)
            return
        for index, line in enumerate(content.splitlines(), start=1):
            fields = line.split()
            if not fields:
                continue
            values = self._checked(fields, f"{name} line {index}", has_keypoints=has_keypoints)
            if values is not None and size is not None:
                height, width = size
                pixels = [
                    value * (width if column % 2 == 0 else height)
                    for column, value in enumerate(values[1:])
                ]
                self.values.append(pixels)
                self.places.append((number, f"{name} line {index}", int(values[0])))

    def _checked(
        self, fields: list[bytes], place: str, *, has_keypoints: bool
    ) -> list[float] | None:
        """The numbers of a line; None where they are of no use, which is noted as a refusal."""
        add = self.refusals.add
        try:
            values = list(map(float, fields))
        except ValueError:
            text = b" ".join(fields)[:40].decode(errors="replace")
            add("lines that are no numbers", f"{place}: {text}", advice=_NUMBERS)
            return None
        if has_keypoints and len(values) > 5:
            values = values[:5]
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            add("lines of a wrong number of columns", f"{place}: {len(values)}", advice=_COLUMNS)
        elif not all(map(math.isfinite, values)):
            add("lines of NaN or Inf", place, advice=_NUMBERS)
        elif not values[0].is_integer() or int(values[0]) not in self.classes:
            advice = _BEYOND.format(last=max(self.classes), count=len(self.classes))
            add("lines of a class number without a name", f"{place}: {values[0]:g}", advice=advice)
        elif min(values[1:]) < -_TOLERANCE or max(values[1:]) > 1 + _TOLERANCE:
            worst = max(values[1:], key=lambda value: abs(value - 0.5))
            add("lines with values outside 0..1", f"{place}: {worst:g}", advice=_FRACTIONS)
        else:
            return values
        return None

    def boxes(self, images: int, *, rotated: Rotated) -> list[list[DescribedBox]]:
        """Of each image. Raises DatasetError where the outlines are rotated boxes."""
        boxes: list[list[DescribedBox]] = [[] for _ in range(images)]
        are_rotated = self._are_rotated()
        if not are_rotated and self._have_four_points():
            self.notes.append(
                "all outlines have four points, as rotated boxes (YOLO-OBB) do, and are not "
                "rectangles, or none is tilted: taken as outlines, which become masks"
            )
        if are_rotated and rotated == "refuse":
            for _, place, _ in self.places:
                self.refusals.add("rotated boxes (YOLO-OBB)", place, advice=ROTATED_ADVICE)
            self.refusals.settle()
        if are_rotated:
            self.notes.append(f"rotated boxes taken as the box around each: {len(self.places)}")
        for (number, place, label), values in zip(self.places, self.values, strict=True):
            boxes[number].append(_box_of(values, label, place, with_mask=not are_rotated))
        return boxes

    def _have_four_points(self) -> bool:
        return bool(self.values) and all(len(values) == 8 for values in self.values)

    def _are_rotated(self) -> bool:
        """Whether all lines have four points, and these are corners of rectangles, some tilted.

        A line of YOLO-OBB looks like an outline of four points.
        """
        if not self._have_four_points():
            return False
        corners = np.array(self.values).reshape(-1, 4, 2)
        centre_apart = np.abs((corners[:, 0] + corners[:, 2]) - (corners[:, 1] + corners[:, 3]))
        one, other = (np.hypot(*(corners[:, start] - corners[:, start + 2]).T) for start in (0, 1))
        is_rectangle = (centre_apart.max(axis=1) <= 2 * _SLACK) & (np.abs(one - other) <= _SLACK)
        is_tilted = np.abs(corners[:, 1] - corners[:, 0]).min(axis=1) > _SLACK
        return bool(is_rectangle.mean() >= _MOSTLY and (is_rectangle & is_tilted).any())


def _box_of(values: list[float], label: int, place: str, *, with_mask: bool) -> DescribedBox:
    if len(values) == 4:
        x, y, width, height = values
        xywh = (x - width / 2, y - height / 2, width, height)
        return DescribedBox(category_id=label + 1, xywh=xywh, place=place)
    return box_of_outline(values, category_id=label + 1, place=place, with_mask=with_mask)


_READ = "Repair the files"
_NUMBERS = "A line is: class x y width height, or: class x1 y1 x2 y2 x3 y3 ..."
_COLUMNS = (
    "Expected 5 (class x y width height) or an outline, 7, 9, 11, ... (class x1 y1 x2 y2 x3 y3 "
    "...); 6 are predictions with a score, others may be keypoints (give `kpt_shape` in data.yaml)"
)
_BEYOND = (
    "`names` has {count} classes, the last one of number {last}: add the names, or correct the "
    "numbers (YOLO counts from 0)"
)
_FRACTIONS = (
    "YOLO writes fractions of the image: divide x and width by its width in pixels, y and height "
    "by its height"
)

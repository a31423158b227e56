"""What every reader of a format gives: annotations as the sections of a COCO file.

Checks and repairs of boxes happen once, behind this: coco.py builds `Annotations` of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from cachedet.config.run import Rotated
from cachedet.data.repairs import PLACE
from cachedet.errors import DatasetError, InputError
from cachedet.structures import SizeHW

_NAMED = 5  # places in one message


@dataclass(frozen=True, kw_only=True)
class DescribedBox:
    """One object as a format describes it, in pixels of the upright image."""

    category_id: int
    xywh: tuple[float, float, float, float]
    place: str  # for a message, such as "labels/a.txt line 3"
    segmentation: Any = None  # as COCO writes it
    area: float | None = None  # None: that of the box
    is_crowd: bool = False


@dataclass(frozen=True, kw_only=True)
class DescribedImage:
    """One image; its size is None where neither the annotations nor its file tell it."""

    file_name: str
    size_hw: SizeHW | None
    boxes: Sequence[DescribedBox] = ()


@dataclass(frozen=True, kw_only=True)
class Sections:
    """The annotations of one source, of whatever format."""

    content: dict[str, Any]  # images, annotations and categories of COCO; sizes of 0 are unknown
    source: Path  # for messages
    kind: str  # for a person, such as "YOLO data set"
    folders: str = ""  # for a person: where its images were found, as far as that was looked for
    split: str | None = None
    root: Path | None = None  # the folder that file names start from; None: only the user knows
    are_ids_ours: bool = False  # the format has no numbers of images: they are matched by name
    notes: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)  # of what was left out, by name
    # Where classes were chosen: id of each in the source -> its id now; None: left out.
    id_of: Mapping[int, int | None] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()  # names of the classes that were not chosen

    @property
    def unread(self) -> list[str]:
        """Images that no size is known of: their files are missing or damaged."""
        images = self.content["images"]
        return [str(image["file_name"]) for image in images if image.get("width") == 0]

    def describe(self) -> str:
        """One line for the screen."""
        of_split = "" if self.split is None else f", split {self.split}"
        of_split += f", images in {self.folders}" if self.folders else ""
        images, boxes = len(self.content["images"]), len(self.content["annotations"])
        classes = len(self.content["categories"])
        counts = f"images: {images:,}, boxes: {boxes:,}, classes: {classes:,}"
        return f"{self.source}: {self.kind}{of_split} ({counts})"


def make_content(images: Sequence[DescribedImage], classes: Mapping[int, str]) -> dict[str, Any]:
    """COCO's sections: images by file name, so that the order of files means nothing."""
    rows: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(sorted(images, key=lambda one: one.file_name), start=1):
        height, width = image.size_hw or (0, 0)
        rows.append({"id": number, "file_name": image.file_name, "width": width, "height": height})
        for box in image.boxes if image.size_hw is not None else ():
            entry = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": box.category_id,
                "bbox": list(box.xywh),
                "iscrowd": int(box.is_crowd),
                PLACE: box.place,
            }
            if box.segmentation is not None:
                entry["segmentation"] = box.segmentation
            if box.area is not None:
                entry["area"] = box.area
            annotations.append(entry)
    categories = [{"id": number, "name": name} for number, name in sorted(classes.items())]
    return {"images": rows, "annotations": annotations, "categories": categories}


def box_of_outline(
    points: list[float], *, category_id: int, place: str, with_mask: bool = True
) -> DescribedBox:
    """The box around a polygon of x, y, x, y, ... in pixels, with it as the mask."""
    x, y = points[0::2], points[1::2]
    left, top = min(x), min(y)
    ahead = zip(x, y, [*x[1:], x[0]], [*y[1:], y[0]], strict=True)
    twice = sum(x0 * y1 - x1 * y0 for x0, y0, x1, y1 in ahead)
    return DescribedBox(
        category_id=category_id,
        xywh=(left, top, max(x) - left, max(y) - top),
        place=place,
        segmentation=[points] if with_mask else None,
        area=abs(twice) / 2 if with_mask else None,
    )


def turned_box(
    x: float, y: float, width: float, height: float, angle: float
) -> tuple[float, float, float, float]:
    """The upright box (x, y, width, height) around one that is turned about its centre (x, y)."""
    cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
    wide, high = width * cosine + height * sine, width * sine + height * cosine
    return x - wide / 2, y - high / 2, wide, high


def listed(places: Sequence[str]) -> str:
    """The first five: ``a.txt line 1; a.txt line 7; and 3 more``."""
    more = len(places) - _NAMED
    return "; ".join([*places[:_NAMED], *([f"and {more} more"] if more > 0 else [])])


@dataclass
class Refusals:
    """What cannot be used in one source, collected: one message tells all of it."""

    source: Path
    _places: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, what: str, place: str, *, advice: str) -> None:
        """One more of a kind, which `what` and `advice` name."""
        self._places.setdefault((what, advice), []).append(place)

    def settle(self) -> None:
        """Raises DatasetError that names each kind with its count and the first five places."""
        if not self._places:
            return
        lines = [
            f"{what}: {len(places)} ({listed(places)}). {advice}"
            for (what, advice), places in self._places.items()
        ]
        raise DatasetError(f"{self.source}: {lines[0]}", *lines[1:])


def require_distinct(classes: dict[int, str], where: Path) -> None:
    """Raises DatasetError where two classes have one name."""
    numbers: dict[str, list[int]] = {}
    for number, name in classes.items():
        numbers.setdefault(name, []).append(number)
    twice = [f"{name!r} is {each}" for name, each in numbers.items() if len(each) > 1]
    if twice:
        raise DatasetError(
            f"{where}: names of more than one class: {len(twice)} ({listed(twice)}). Rename them, "
            "or give their boxes one number in the label files"
        )


ROTATED_ADVICE = (
    "Detectors here know upright boxes only: take the box around each with --rotated outer (of "
    "extract, relabel, check, estimate, compare and convert; elsewhere give the file that convert "
    "writes)"
)


def parse_rotated(text: str) -> Rotated:
    """Raises InputError on another word."""
    for known in get_args(Rotated):
        if text == known:
            return cast(Rotated, known)
    raise InputError(f"--rotated expects refuse or outer, got {text!r}")


def choose_split(wanted: str | None, known: Sequence[str], source: Path) -> str | None:
    """The split to read; None where the source has none.

    Raises DatasetError where it has several and none is named, or another one is.
    """
    if wanted is None and len(known) <= 1:
        return known[0] if known else None
    names = ", ".join(known)
    if wanted is None:
        raise DatasetError(
            f"{source} has several splits ({names}): choose one with --split, or as "
            f"{source.name}:{known[0]}"
        )
    for name in (wanted, *_OTHER_NAMES.get(wanted, ())):
        if name in known:
            return name
    has = f"it has {names}" if known else "it has none; leave --split out"
    raise DatasetError(f"{source} has no split {wanted!r}: {has}")


_OTHER_NAMES = {
    "val": ("valid", "validation"),
    "valid": ("val", "validation"),
    "validation": ("val", "valid"),
    "train": ("training",),
}

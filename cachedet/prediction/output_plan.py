"""What `predict` writes and where: names are chosen, and files of others refused, before the work.

OUT/a.jpg                  drawings; of a video OUT/clip-frames/000015.jpg
OUT/detections.json        --format json
OUT/coco_results.json      --format coco, and coco_images.json: what its image ids mean
OUT/labels/a.txt           --format yolo, and data.yaml: the names of its classes
OUT/detections.csv         --format csv
OUT/crops/CLASS/a-1.jpg    crops
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cachedet.drawing.image_drawing import draw_boxes, make_drawing
from cachedet.errors import InputError, nearest_names
from cachedet.outputs import (
    CROP_COMMENT,
    DRAWING_COMMENT,
    Kind,
    distinct_names,
    require_all_ours,
    require_folder,
    require_ours,
    write_file,
)
from cachedet.prediction.image_report import ImageReport
from cachedet.prediction.listings import coco_images, coco_rows, table, yolo_classes, yolo_lines
from cachedet.prediction.videos import is_video
from cachedet.structures import CategoryMap

FORMATS = ("json", "coco", "yolo", "csv")
_LABELS, _CROPS = "labels", "crops"
_FILES = {  # by format
    "json": {"detections.json": Kind.FOUND},
    "coco": {"coco_results.json": Kind.FOUND_COCO, "coco_images.json": Kind.FOUND_IMAGES},
    "yolo": {"data.yaml": Kind.CLASSES},
    "csv": {"detections.csv": Kind.TABLE},
}


def parse_formats(text: str) -> tuple[str, ...]:
    """``json,csv`` -> its names, each once. Raises InputError."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in FORMATS:
            raise InputError(
                f"--format expects some of {', '.join(FORMATS)}, got {name!r}"
                f"{nearest_names(name, FORMATS)}"
            )
    return names


@dataclass(frozen=True, kw_only=True)
class OutputPlan:
    """What is written of each image, and of all."""

    out: Path
    formats: tuple[str, ...]
    crops: bool
    names: tuple[str, ...]  # by file, without an ending; of a video that of a folder
    drawings: tuple[Path | None, ...]  # by file; of a video a folder

    @property
    def needs_pixels(self) -> bool:
        """Whether all pixels of an image are used once more."""
        return self.crops or any(self.drawings)

    def write_image(self, image: ImageReport, pixels: NDArray[np.uint8] | None) -> None:
        """The files of one image, and its masks for the lists. Raises InputError."""
        _ = image.mask_codes
        if image.drawing is not None and pixels is not None:
            drawing = make_drawing(
                image.detections, image.categories, image.mask_codes, size_hw=image.size_hw
            )
            drawn = draw_boxes(pixels, drawing)
            write_file(image.drawing, _jpeg(drawn, DRAWING_COMMENT), kind=Kind.DRAWING)
        if self.crops and pixels is not None:
            self._write_crops(image, pixels)
        if "yolo" in self.formats:
            file = self.out / _LABELS / f"{image.name}.txt"
            write_file(file, yolo_lines(image).encode(), kind=Kind.LABELS)

    def write_lists(self, images: Sequence[ImageReport], categories: CategoryMap) -> None:
        """The files of all images. Raises InputError."""
        for name, kind in self._lists().items():
            write_file(self.out / name, _content(kind, images, categories), kind=kind)

    def require_ours(self, files: Sequence[Path], inputs: Sequence[Path]) -> None:
        """Refuse to write among the inputs, or over what is not ours. Raises InputError."""
        require_folder(self.out, inputs=[*inputs, *{file.parent for file in files}])
        for name, kind in self._lists().items():
            require_ours(self.out / name, kind=kind)
        numbers = [number for number, file in enumerate(files) if not is_video(file)]
        if "yolo" in self.formats:
            labels = [f"{self.names[number]}.txt" for number in numbers]
            require_all_ours(self.out / _LABELS, labels, kind=Kind.LABELS)
        drawings = [path.name for number in numbers if (path := self.drawings[number])]
        require_all_ours(self.out, drawings, kind=Kind.DRAWING)

    def _lists(self) -> dict[str, Kind]:
        return {name: kind for each in self.formats for name, kind in _FILES[each].items()}

    def _write_crops(self, image: ImageReport, pixels: NDArray[np.uint8]) -> None:
        height, width = image.size_hw
        folders = _class_folders(image.categories)
        for place, (x1, y1, x2, y2) in enumerate(image.detections.boxes.tolist(), start=1):
            left, top = min(max(int(x1), 0), width - 1), min(max(int(y1), 0), height - 1)
            right, bottom = max(math.ceil(x2), left + 1), max(math.ceil(y2), top + 1)
            crop = Image.fromarray(np.ascontiguousarray(pixels[top:bottom, left:right]))
            folder = folders[int(image.detections.labels[place - 1])]
            file = self.out / _CROPS / folder / f"{image.name}-{place}.jpg"
            write_file(file, _jpeg(crop, CROP_COMMENT), kind=Kind.CROP)


def plan_outputs(
    files: Sequence[Path],
    out: Path,
    *,
    inputs: Sequence[Path],
    formats: tuple[str, ...],
    drawings: bool,
    crops: bool,
) -> OutputPlan:
    """Names for all that is going to be written; no two images share one.

    Raises InputError where `out` is an input or somebody's, or holds files that are not ours.
    """
    names = distinct_names(
        [f"{file.stem}-frames" if is_video(file) else file.stem for file in files]
    )
    drawn = distinct_names([_drawing_name(file) for file in files]) if drawings else []
    plan = OutputPlan(
        out=out,
        formats=formats,
        crops=crops,
        names=tuple(names),
        drawings=tuple(out / name for name in drawn) if drawings else (None,) * len(files),
    )
    plan.require_ours(files, inputs)
    return plan


def _drawing_name(file: Path) -> str:
    if is_video(file):
        return f"{file.stem}-frames"
    return f"{file.stem}{'' if file.suffix == '.jpg' else file.suffix}.jpg"


def _content(kind: Kind, images: Sequence[ImageReport], categories: CategoryMap) -> bytes:
    if kind is Kind.FOUND:
        return json.dumps([image.to_json() for image in images], indent=1).encode()
    if kind is Kind.FOUND_COCO:
        return json.dumps(coco_rows(images)).encode()
    if kind is Kind.FOUND_IMAGES:
        return json.dumps(coco_images(images, categories), indent=1).encode()
    text = yolo_classes(categories) if kind is Kind.CLASSES else table(images)
    return text.encode("utf-8", "surrogateescape")


def _jpeg(image: Image.Image, comment: bytes) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", comment=comment)
    return buffer.getvalue()


@lru_cache(maxsize=4)
def _class_folders(categories: CategoryMap) -> tuple[str, ...]:
    """A folder's name for each class, whatever its own name holds."""
    names = [re.sub(r"[^\w ()+-]", "_", name).strip() or "_" for name in categories.names]
    return tuple(distinct_names(names))

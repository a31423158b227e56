"""Which images an export looks at: for the proof, for the ranges of int8, and for its AP."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cachedet.data.annotation_formats import read_dataset
from cachedet.data.image_folders import images_in
from cachedet.data.images import decode_image
from cachedet.errors import BadImageError, InputError

_log = logging.getLogger(__name__)

MOST_IMAGES = 24  # of a folder, by default
MOST_CALIBRATION_IMAGES = 64
_LEAST_CALIBRATION_IMAGES = 16  # that the annotations leave; else halves of what they name
_GENERATED = (1.0, 0.75), (0.75, 1.0), (1.0, 1.0), (0.5, 1.0)  # sides, in shares of image_size
_OF_EACH = 3  # generated images


@dataclass(frozen=True, kw_only=True)
class ProofImages:
    """Which images the proof runs on; generated ones where no folder is named."""

    folder: Path | None = None
    annotations: Path | None = None  # that name the images to take, with the run's classes
    most: int = MOST_IMAGES

    def read(self, *, image_size: int) -> tuple[list[NDArray[np.uint8]], str]:
        """Pixels, and what they are. Raises InputError, DatasetError, BadImageError."""
        if self.folder is None:
            if self.annotations is not None:
                raise InputError("--annotations name images of a folder: give it with --images")
            images = generated_images(image_size)
            return images, f"{len(images)} generated images"
        files = self.named() if self.annotations is not None else images_in(self.folder)
        taken = _spread(files, self.most)
        pixels = [decode_image(file) for file in taken]
        return pixels, f"{len(taken)} images of the folder {self.folder.name}"

    def named(self) -> list[Path]:
        """The files that the annotations name, in their order. Raises DatasetError."""
        if self.folder is None or self.annotations is None:
            return []
        dataset = read_dataset(annotations=self.annotations, images=self.folder)
        return [dataset.path_of(row) for row in range(len(dataset.annotations))]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Images and annotations that AP is measured on."""

    images: Path
    annotations: Path
    rows: Sequence[int]  # of the annotations


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Images that int8 takes its ranges from, and others that score it."""

    files: tuple[Path, ...]
    described: str  # where they come from
    truth: Truth | None  # None: there are no annotations

    def read(self) -> list[NDArray[np.uint8]]:
        """Pixels; files that cannot be read are passed over, with a line. Raises InputError."""
        found = []
        for file in self.files:
            try:
                found.append(decode_image(file))
            except BadImageError as error:
                _log.info("passed over for int8: %s", error)
        if not found:
            raise InputError(f"none of the {len(self.files)} images for --int8 can be read")
        return found


def choose_calibration(proof: ProofImages, calibrate: Path | None) -> Calibration:
    """No image has both tasks. Raises InputError, DatasetError.

    From `calibrate`, else from the folder of `proof`, those that the annotations do not name. Where
    the folder has fewer than 16 others, every second one that is named.
    """
    source = calibrate or proof.folder
    if source is None:
        raise InputError("--int8 takes its ranges from images: give --images or --calibrate")
    named = proof.named()
    known = {os.path.realpath(file) for file in named}
    files = [
        file for file in images_in(source, recursive=True) if os.path.realpath(file) not in known
    ]
    described, rows = f"of the folder {source.name}", range(len(named))
    if named and calibrate is None:
        described += " that the annotations do not name"
        if len(files) < _LEAST_CALIBRATION_IMAGES:
            files, rows = [*files, *named[1::2]], range(0, len(named), 2)
            described = f"of the folder {source.name}, every second one of the named among them"
    if not files:
        raise InputError(
            f"{source} has no images for --int8 besides those that score it: give a folder of "
            "others, --calibrate"
        )
    taken = _spread(files, MOST_CALIBRATION_IMAGES)
    truth = None
    if proof.folder is not None and proof.annotations is not None:
        truth = Truth(images=proof.folder, annotations=proof.annotations, rows=tuple(rows))
    return Calibration(files=tuple(taken), described=described, truth=truth)


def _spread(files: Sequence[Path], most: int) -> Sequence[Path]:
    """At most so many, from all over the folder."""
    count = min(most, len(files))
    return [files[number * len(files) // count] for number in range(count)]


def generated_images(image_size: int) -> list[NDArray[np.uint8]]:
    """Images of four shapes, always the same: coloured rectangles on soft noise."""
    draws = np.random.default_rng(0)
    images = []
    for tall, wide in _GENERATED * _OF_EACH:
        height, width = round(image_size * tall), round(image_size * wide)
        coarse = draws.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
        image = coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width].copy()
        for _ in range(8):
            top, left = draws.integers(0, height * 3 // 4), draws.integers(0, width * 3 // 4)
            rows, columns = draws.integers(8, height // 2), draws.integers(8, width // 2)
            image[top : top + rows, left : left + columns] = draws.integers(0, 256, 3)
        images.append(image)
    return images

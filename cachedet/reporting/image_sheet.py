"""The contact sheet: which images are shown, as what JPEG, with which boxes.

Letters: N images, D detections.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cachedet.data.images import decode_image
from cachedet.errors import BadImageError, InputError
from cachedet.evaluation.error_kinds import IGNORED, KIND_NAMES, RIGHT
from cachedet.reporting.run_analysis import RunAnalysis
from cachedet.structures import Annotations

MOST_NBYTES = 3_300_000  # of all images in base64; the page stays below 5 MB
_LADDER = ((384, 70), (384, 55), (320, 55), (256, 50), (192, 45), (128, 40))  # long side, quality
_MOST_DETECTIONS = 20_000  # of all images and runs that the page draws
_MOST_BOXES = 500  # of the ground truth of one image that the page draws
_PREFIX = "data:image/jpeg;base64,"

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SheetImage:
    """One image of the sheet; boxes are xywh in its pixels."""

    row: int
    file_name: str
    is_worst: bool
    size_hw: tuple[int, int]
    source: str  # data URL
    boxes: list[list[float]]  # x, y, w, h, label, crowd
    detections: list[list[list[float]]]  # runs of x, y, w, h, score, label, kind, its box or -1


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The images, best first, and what the page's controls start with."""

    images: tuple[SheetImage, ...]
    class_names: tuple[str, ...]
    cuts: tuple[float, ...]  # best cut of each run
    most_detections: int  # drawn of an image and run
    unreadable: tuple[str, ...]  # why images are missing
    long_side: int

    def index_of(self, image: SheetImage) -> int:
        """Its index in the data of the page's script."""
        return next(n for n, shown in enumerate(self.images) if shown is image)

    def to_json(self) -> dict[str, Any]:
        """The data of the page's script."""
        return {
            "images": [
                {"ground_truth": image.boxes, "runs": image.detections} for image in self.images
            ],
            "classes": list(self.class_names),
            "cuts": list(self.cuts),
            "kinds": list(KIND_NAMES),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageScores:
    """How the first run does on each image at its best cut, IoU 0.5."""

    f1: NDArray[np.float64]  # (N,) NaN: neither boxes nor detections
    right: Ints  # (N,)
    wrong: Ints  # (N,) wrong detections and boxes not found


def score_images(annotations: Annotations, run: RunAnalysis) -> ImageScores:
    """F1 of each image; crowds and detections in them are left out."""
    kinds, matches, cut = run.kinds, run.kinds.matches, run.curves.best.score
    kept = matches.scores >= (cut if not math.isnan(cut) else 0.0)
    right, detected = (
        np.bincount(matches.rows[kept & flags], minlength=len(annotations))
        for flags in (kinds.of_kind(RIGHT), ~kinds.of_kind(IGNORED))
    )
    boxes = np.bincount(matches.gt_rows[~annotations.crowd], minlength=len(annotations))
    total = boxes + detected
    f1 = np.where(total > 0, 2 * right / np.maximum(total, 1), np.nan)
    return ImageScores(f1=f1, right=right, wrong=total - 2 * right)


def choose_images(scores: ImageScores, *, most: int) -> tuple[list[int], list[int]]:
    """Rows of the best and the worst images, the most extreme first; none is in both.

    Equal F1: the one with more boxes found is better, the one with more errors worse.
    """
    known = np.flatnonzero(~np.isnan(scores.f1))
    worst_first = known[np.lexsort((known, -scores.wrong[known], scores.f1[known]))]
    best_first = known[np.lexsort((known, -scores.right[known], -scores.f1[known]))]
    share = min(most, -(-len(known) // 2))
    worst = worst_first[: min(most, len(known) // 2)].tolist()
    taken = set(worst)
    best = [row for row in best_first.tolist() if row not in taken][:share]
    return best, worst


def require_folder(images: Path) -> None:
    """Refuse what is no folder before minutes of resampling. Raises InputError."""
    if not images.is_dir():
        raise InputError(f"--images expects the folder of the scored images, got {images}")


def make_sheet(
    annotations: Annotations,
    runs: Sequence[RunAnalysis],
    *,
    images: Path,
    most: int,
    on_done: Callable[[int], None],
) -> Sheet:
    """Decode, shrink and encode the images; those that cannot be read are named, not shown.

    Shown are at most so many of the first run's best images, and of its worst; `on_done` is called
    with 1 for each.

    Raises InputError where the folder does not exist or holds none of the images.
    """
    require_folder(images)
    scores = score_images(annotations, runs[0])
    best, worst = choose_images(scores, most=most)
    decoded: dict[int, NDArray[np.uint8]] = {}
    reasons: list[str] = []
    for row in (*best, *worst):
        try:
            decoded[row] = _shrink(_read(images, annotations, row))
        except BadImageError as error:
            reasons.append(str(error))
        on_done(1)
    if not decoded and reasons:
        raise InputError(
            f"--images {images} holds none of the {len(reasons)} images to show; the first: "
            f"{reasons[0]}. Give the folder that the annotations' file names start from"
        )
    sources, long_side = _encode_all(decoded)
    shown = max(len(decoded) * len(runs), 1)
    cap = max(min(100, _MOST_DETECTIONS // shown), 1)
    sheet_images = [
        SheetImage(
            row=row,
            file_name=annotations.file_names[row],
            is_worst=row in worst,
            size_hw=annotations.size_of(row),
            source=sources[row],
            boxes=_boxes(annotations, row),
            detections=[_detections(annotations, run, row, most=cap) for run in runs],
        )
        for row in decoded
    ]
    cuts = [run.curves.best.score for run in runs]
    return Sheet(
        images=tuple(sheet_images),
        class_names=annotations.categories.names,
        cuts=tuple(0.5 if math.isnan(cut) else cut for cut in cuts),
        most_detections=cap,
        unreadable=tuple(reasons),
        long_side=long_side,
    )


def _read(images: Path, annotations: Annotations, row: int) -> NDArray[np.uint8]:
    """Pixels of one image. Raises BadImageError; a path that leaves the folder is one."""
    name = annotations.file_names[row]
    path = images / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(images)):
        raise BadImageError(f"{name!r} leaves the folder {images}")
    pixels = decode_image(path)
    if pixels.shape[:2] != annotations.size_of(row):
        height, width = annotations.size_of(row)
        raise BadImageError(
            f"{path} is {pixels.shape[1]}x{pixels.shape[0]}, the scored image was {width}x{height}"
        )
    return pixels


def _shrink(pixels: NDArray[np.uint8], *, long_side: int = _LADDER[0][0]) -> NDArray[np.uint8]:
    image = Image.fromarray(pixels)
    scale = long_side / max(image.size)
    if scale >= 1:
        return pixels
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def _encode_all(decoded: dict[int, NDArray[np.uint8]]) -> tuple[dict[int, str], int]:
    """All at the finest rung of the ladder that keeps the page small, or at its last."""
    sources: dict[int, str] = {}
    for long_side, quality in _LADDER:
        sources = {
            row: _encode(_shrink(pixels, long_side=long_side), quality=quality)
            for row, pixels in decoded.items()
        }
        if sum(map(len, sources.values())) <= MOST_NBYTES:
            return sources, long_side
    return sources, _LADDER[-1][0]


def _encode(pixels: NDArray[np.uint8], *, quality: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=True)
    return _PREFIX + base64.b64encode(buffer.getvalue()).decode("ascii")


def _boxes(annotations: Annotations, row: int) -> list[list[float]]:
    of_row = annotations.boxes_of(row)
    columns = (annotations.xywh, annotations.labels, annotations.crowd)
    boxes = zip(*(column[of_row][:_MOST_BOXES] for column in columns), strict=True)
    return [[*_rounded(box), int(label), int(crowd)] for box, label, crowd in boxes]


def _detections(
    annotations: Annotations, run: RunAnalysis, row: int, *, most: int
) -> list[list[float]]:
    """Best score first."""
    kinds, matches = run.kinds, run.kinds.matches
    numbers = np.flatnonzero(matches.rows == row)
    numbers = numbers[np.argsort(-matches.scores[numbers], kind="stable")][:most]
    right = kinds.of_kind(RIGHT)[numbers]
    partners = np.where(right, matches.partner[0][numbers] - annotations.offsets[row], -1)
    boxes = run.table.xywh[matches.source[numbers]]
    columns = (column[numbers] for column in (matches.scores, matches.labels, kinds.codes))
    return [
        [*_rounded(box), round(float(score), 4), int(label), int(kind), int(partner)]
        for box, score, label, kind, partner in zip(boxes, *columns, partners, strict=True)
    ]


def _rounded(box: NDArray[np.float64]) -> list[float]:
    return [round(float(side), 1) for side in box]

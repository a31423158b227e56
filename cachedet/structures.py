"""What travels between the rooms of cachedet. Knows nobody.

Letters: N pictures, M boxes, D detections, L levels, C channels, H W pixels, h w feature cells.
Boxes are xyxy. `label` counts 0..K-1; `category_id` is the number in the user's file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Features = dict[str, Tensor]
"""One map per level, ordered fine to coarse: {"C3": (N, C, h, w), ...}."""

SizeHW = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class LevelSpec:
    """One feature level; `stride` is input pixels per feature cell."""

    name: str
    channels: int
    stride: int

    def __post_init__(self) -> None:
        if self.channels < 1 or self.stride < 1:
            raise ValueError(
                f"level {self.name!r}: channels and stride must be >= 1, "
                f"got channels={self.channels}, stride={self.stride}"
            )


@dataclass(frozen=True)
class FeatureSpec:
    """The levels a backbone gives, ordered fine to coarse.

    The backbone declares it, the store keeps it, necks and heads are built from it.
    """

    levels: tuple[LevelSpec, ...]

    def __post_init__(self) -> None:
        strides = [level.stride for level in self.levels]
        if not strides or strides != sorted(set(strides)):
            raise ValueError(f"levels must be ordered fine to coarse, got strides {strides}")

    def __iter__(self) -> Iterator[LevelSpec]:
        return iter(self.levels)

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(level.name for level in self.levels)

    @property
    def pad_multiple(self) -> int:
        """Input sides must be multiples of this so that every map has a whole number of cells."""
        return math.lcm(*(level.stride for level in self.levels))

    def map_shapes(self, padded_hw: SizeHW) -> dict[str, tuple[int, int, int]]:
        """(C, h, w) of each level for an input of `padded_hw` pixels."""
        height, width = padded_hw
        return {
            level.name: (level.channels, height // level.stride, width // level.stride)
            for level in self.levels
        }

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(level) for level in self.levels]

    @classmethod
    def from_json(cls, levels: Sequence[dict[str, Any]]) -> FeatureSpec:
        return cls(tuple(LevelSpec(**level) for level in levels))


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pixels become backbone input: RGB scaled to [0, 1], minus `mean`, divided by `std`."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str

    def to_json(self) -> dict[str, Any]:
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preprocessing:
        mean, std = tuple(values["mean"]), tuple(values["std"])
        return cls(mean=mean, std=std, interpolation=values["interpolation"])


@dataclass(frozen=True, kw_only=True)
class CategoryMap:
    """Label k stands for category `ids[k]`, called `names[k]`."""

    ids: tuple[int, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.names) or len(set(self.ids)) != len(self.ids):
            raise ValueError(f"category ids must be unique, one name each, got {self.ids}")

    def __len__(self) -> int:
        return len(self.ids)

    def label_of(self) -> dict[int, int]:
        """category_id -> label."""
        return {category_id: label for label, category_id in enumerate(self.ids)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """All pictures of a data set and their boxes, in arrays (row n = picture n).

    Boxes of row n are `boxes[offsets[n]:offsets[n + 1]]`, xyxy in pixels of the picture after its
    EXIF orientation, exactly as annotated: parts outside the picture are clipped by the view.
    """

    image_ids: NDArray[np.int64]  # (N,)
    file_names: tuple[str, ...]  # N, relative to the image folder
    sizes_hw: NDArray[np.int64]  # (N, 2)
    offsets: NDArray[np.int64]  # (N + 1,)
    boxes: NDArray[np.float64]  # (M, 4)
    labels: NDArray[np.int64]  # (M,)
    crowd: NDArray[np.bool_]  # (M,)
    areas: NDArray[np.float64]  # (M,) COCO's `area`, used for its small/medium/large split
    categories: CategoryMap

    def __len__(self) -> int:
        return len(self.image_ids)

    def boxes_of(self, row: int) -> slice:
        return slice(int(self.offsets[row]), int(self.offsets[row + 1]))

    def size_of(self, row: int) -> SizeHW:
        return int(self.sizes_hw[row, 0]), int(self.sizes_hw[row, 1])

    def keep_rows(self, rows: Sequence[int]) -> Truth:
        """The same truth with only these pictures, in the order given."""
        counts = np.diff(self.offsets)[list(rows)]
        starts = self.offsets[list(rows)]
        spans = [np.arange(start, start + n) for start, n in zip(starts, counts, strict=True)]
        picked = np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
        return Truth(
            image_ids=self.image_ids[list(rows)],
            file_names=tuple(self.file_names[row] for row in rows),
            sizes_hw=self.sizes_hw[list(rows)],
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=self.boxes[picked],
            labels=self.labels[picked],
            crowd=self.crowd[picked],
            areas=self.areas[picked],
            categories=self.categories,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """What one view of one picture should be detected as; crowd boxes are ignored by losses."""

    image_id: int
    size_hw: SizeHW  # valid pixels of the view, without padding
    boxes: Tensor  # (M, 4) float32, pixels of the view
    labels: Tensor  # (M,) int64
    crowd: Tensor  # (M,) bool

    def to(self, device: torch.device) -> Targets:
        return Targets(
            image_id=self.image_id,
            size_hw=self.size_hw,
            boxes=self.boxes.to(device),
            labels=self.labels.to(device),
            crowd=self.crowd.to(device),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """What a detector found in one picture, best score first."""

    image_id: int
    boxes: Tensor  # (D, 4) float32; pixels of the view or, once mapped back, of the picture
    scores: Tensor  # (D,) float32 in [0, 1]
    labels: Tensor  # (D,) int64

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, min_score: float) -> Detections:
        """Only those with at least this score."""
        kept = self.scores >= min_score
        return replace(
            self, boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept]
        )

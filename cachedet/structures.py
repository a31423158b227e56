"""What travels between the rooms of cachedet. Knows nobody.

Letters: N images, M boxes, D detections, L levels, C channels, H W pixels, h w feature cells.
Boxes are xyxy. `label` counts 0..K-1; `category_id` is the number in the user's file.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Features = dict[str, Tensor]
"""One map per level, ordered fine to coarse: {"C3": (N, C, h, w), ...}; tokens (N, C, 1, T)."""

SizeHW = tuple[int, int]

MOST_LEVELS = 64  # a pyramid has 3 to 7; thousands of strides would have an endless multiple
_LEVEL_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,100}")


@dataclass(frozen=True, kw_only=True)
class LevelSpec:
    """One feature level; `stride` is input pixels per feature cell.

    A level of `tokens` is no map: as many cells for any input, which belong to the map in front of
    it and have its stride. They lie as a map of one row, (C, 1, T).

    A `tap` is one of several maps of a plain ViT that are taken side by side, with the norm of its
    last layer; a map without it is what the next block takes. With `bf16` the backbone computes
    it in bfloat16.
    """

    name: str
    channels: int
    stride: int
    tokens: int = 0  # 0: a map
    tap: bool = False
    bf16: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError; both may come from a foreign store, where the name is a folder."""
        if not isinstance(self.name, str) or not _LEVEL_NAME.fullmatch(self.name):
            raise ValueError(
                "the name of a level must be 1 to 100 of the characters A-Z a-z 0-9 _ . - and not "
                f"'.' or '..', got {reprlib.repr(self.name)}"
            )
        numbers = (self.channels, self.stride)
        if any(type(number) is not int or number < 1 for number in numbers):
            raise ValueError(
                f"level {self.name!r}: channels and stride must be whole numbers >= 1, got "
                f"channels={reprlib.repr(self.channels)}, stride={reprlib.repr(self.stride)}"
            )
        if type(self.tokens) is not int or self.tokens < 0:
            raise ValueError(
                f"level {self.name!r}: tokens must be a whole number >= 0, got "
                f"{reprlib.repr(self.tokens)}"
            )
        for field in ("tap", "bf16"):
            if type(value := getattr(self, field)) is not bool:
                raise ValueError(
                    f"level {self.name!r}: {field} must be true or false, got {reprlib.repr(value)}"
                )

    def shape(self, padded_hw: SizeHW) -> tuple[int, int, int]:
        """(C, h, w) for an input of `padded_hw` pixels."""
        if self.tokens:
            return self.channels, 1, self.tokens
        return self.channels, padded_hw[0] // self.stride, padded_hw[1] // self.stride

    def to_json(self) -> dict[str, Any]:
        """Its fields; `tokens`, `tap` and `bf16` only where they say something."""
        return {name: value for name, value in asdict(self).items() if value}


@dataclass(frozen=True)
class FeatureSpec:
    """The levels a backbone gives, ordered fine to coarse; of equal strides the deepest last.

    The backbone declares it, the store keeps it, necks and heads are built from it.
    """

    levels: tuple[LevelSpec, ...]

    def __post_init__(self) -> None:
        """Raises ValueError; the levels may come from a foreign store."""
        strides = [level.stride for level in self.levels]
        if not strides or strides != sorted(strides):
            raise ValueError(
                f"levels must be ordered fine to coarse, got strides {reprlib.repr(strides)}"
            )
        if self.levels[0].tokens:
            raise ValueError(
                f"tokens belong to the map in front of them, got {self.names[0]} first"
            )
        if len(self.levels) > MOST_LEVELS or len(set(self.names)) != len(self.levels):
            raise ValueError(
                f"expected at most {MOST_LEVELS} levels, each of another name, "
                f"got {len(self.levels)} with {len(set(self.names))} names"
            )

    def __iter__(self) -> Iterator[LevelSpec]:
        return iter(self.levels)

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(level.name for level in self.levels)

    @property
    def maps(self) -> FeatureSpec:
        """Without the levels of tokens."""
        return FeatureSpec(tuple(level for level in self.levels if not level.tokens))

    @property
    def pyramid(self) -> FeatureSpec:
        """The deepest map of each stride, and all taps: what heads take where they name none."""
        deepest = {level.stride: level for level in self.maps}.values()
        return FeatureSpec(tuple(level for level in self.maps if level.tap or level in deepest))

    def with_tokens(self, name: str) -> tuple[str, ...]:
        """The map `name`, and the tokens that belong to it."""
        start = self.names.index(name)
        behind = takewhile(lambda level: level.tokens, self.levels[start + 1 :])
        return name, *(level.name for level in behind)

    def up_to(self, name: str) -> FeatureSpec:
        """The levels up to the map `name` and its tokens."""
        last = self.with_tokens(name)[-1]
        return FeatureSpec(self.levels[: self.names.index(last) + 1])

    @property
    def bf16(self) -> bool:
        """Whether the backbone computes its maps in bfloat16."""
        return any(level.bf16 for level in self.levels)

    @property
    def pad_multiple(self) -> int:
        """Input sides must be multiples of this so that every map has a whole number of cells."""
        return math.lcm(*(level.stride for level in self.levels))

    def map_shapes(self, padded_hw: SizeHW) -> dict[str, tuple[int, int, int]]:
        """(C, h, w) of each level for an input of `padded_hw` pixels."""
        return {level.name: level.shape(padded_hw) for level in self.levels}

    def to_json(self) -> list[dict[str, Any]]:
        return [level.to_json() for level in self.levels]

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
        mean, std = list(self.mean), list(self.std)
        return {"mean": mean, "std": std, "interpolation": self.interpolation}

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
            got = reprlib.repr(self.ids)
            raise ValueError(f"category ids must be unique, one name each, got {got}")

    def __len__(self) -> int:
        return len(self.ids)

    def unlike(self, other: CategoryMap, *, where: str = "in the store") -> str:
        """Name the classes (id: name) that only one has; `where` says what the other ones are."""
        ours, theirs = (dict(zip(each.ids, each.names, strict=True)) for each in (self, other))
        only_ours = {key: name for key, name in ours.items() if theirs.get(key) != name}
        only_theirs = {key: name for key, name in theirs.items() if ours.get(key) != name}
        return f"only there {reprlib.repr(only_ours)}, only {where} {reprlib.repr(only_theirs)}"

    def label_of(self) -> dict[int, int]:
        """category_id -> label."""
        return {category_id: label for label, category_id in enumerate(self.ids)}


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskCodes:
    """One mask a box, as the bytes of masks.py one after the other."""

    codes: NDArray[np.uint8]  # (B,)
    offsets: NDArray[np.int64]  # (M + 1,)

    @classmethod
    def join(cls, codes: Sequence[bytes]) -> MaskCodes:
        return cls(
            codes=np.frombuffer(b"".join(codes), dtype=np.uint8),
            offsets=np.cumsum([0, *map(len, codes)]).astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, box: int) -> bytes:
        return self.codes[self.offsets[box] : self.offsets[box + 1]].tobytes()

    @property
    def are_missing(self) -> NDArray[np.bool_]:
        """(M,) which boxes have no mask."""
        return np.asarray(np.diff(self.offsets) == 0)

    def keep(self, boxes: Sequence[int] | NDArray[np.int64]) -> MaskCodes:
        """Only these boxes' masks, in the order given."""
        return MaskCodes.join([self[int(box)] for box in boxes])


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotations:
    """All images of a data set and their boxes, in arrays (row n = image n).

    Boxes of row n are `boxes[offsets[n]:offsets[n + 1]]`, xyxy in pixels of the image after its
    EXIF orientation, exactly as annotated: parts outside the image are clipped by the view.
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
    masks: MaskCodes | None = None  # M of them, bitmaps of the image's size
    sides_wh: NDArray[np.float64] | None = None  # (M, 2) as a file has them: x2 - x1 is rounded

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def xywh(self) -> NDArray[np.float64]:
        """(M, 4) as COCO writes boxes."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2] if self.sides_wh is None else self.sides_wh
        return np.concatenate([self.boxes[:, :2], sides], axis=1)

    def boxes_of(self, row: int) -> slice:
        return slice(int(self.offsets[row]), int(self.offsets[row + 1]))

    def size_of(self, row: int) -> SizeHW:
        return int(self.sizes_hw[row, 0]), int(self.sizes_hw[row, 1])

    def keep_boxes(self, kept: NDArray[np.bool_]) -> Annotations:
        """All images, with only the boxes where `kept` (M,) says so."""
        before = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
        picked = np.flatnonzero(kept)
        return replace(
            self,
            offsets=before[self.offsets],
            boxes=self.boxes[picked],
            labels=self.labels[picked],
            crowd=self.crowd[picked],
            areas=self.areas[picked],
            masks=self.masks.keep(picked) if self.masks is not None else None,
            sides_wh=self.sides_wh[picked] if self.sides_wh is not None else None,
        )

    def with_classes(self, categories: CategoryMap, labels: Sequence[int]) -> Annotations:
        """Label k as `labels[k]` of `categories`; boxes of a class with -1 are left out."""
        now = np.array(labels, dtype=np.int64)[self.labels]
        relabelled = replace(self, labels=now, categories=categories)
        return relabelled if (now >= 0).all() else relabelled.keep_boxes(now >= 0)

    def keep_rows(self, rows: Sequence[int]) -> Annotations:
        """The same ground truth with only these images, in the order given."""
        counts = np.diff(self.offsets)[list(rows)]
        starts = self.offsets[list(rows)]
        spans = [np.arange(start, start + n) for start, n in zip(starts, counts, strict=True)]
        picked = np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
        return replace(
            self,
            image_ids=self.image_ids[list(rows)],
            file_names=tuple(self.file_names[row] for row in rows),
            sizes_hw=self.sizes_hw[list(rows)],
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=self.boxes[picked],
            labels=self.labels[picked],
            crowd=self.crowd[picked],
            areas=self.areas[picked],
            masks=self.masks.keep(picked) if self.masks is not None else None,
            sides_wh=self.sides_wh[picked] if self.sides_wh is not None else None,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetMasks:
    """Masks of one image's boxes; bitmaps of the image, not of the view.

    The point (x, y) of the view is the point `scale_xy * (x, y) + origin_xy` of the image, so
    that resizing, windows and mirroring of a view compose.
    """

    codes: tuple[bytes, ...]  # M, empty where a box has none
    image_hw: SizeHW
    scale_xy: tuple[float, float]  # pixels of the image per pixel of the view; x < 0: mirrored
    origin_xy: tuple[float, float]  # where the view's corner (0, 0) lies in the image


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """What one view of one image should be detected as; crowd boxes are ignored by losses."""

    image_id: int
    size_hw: SizeHW  # valid pixels of the view, without padding
    boxes: Tensor  # (M, 4) float32, pixels of the view
    labels: Tensor  # (M,) int64
    crowd: Tensor  # (M,) bool
    masks: TargetMasks | None = None  # None where the data set has none

    def to(self, device: torch.device) -> Targets:
        return replace(
            self,
            boxes=self.boxes.to(device),
            labels=self.labels.to(device),
            crowd=self.crowd.to(device),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """What a detector found in one image, best score first."""

    image_id: int
    boxes: Tensor  # (D, 4) float32; pixels of the view or, once mapped back, of the image
    scores: Tensor  # (D,) float32 in [0, 1]
    labels: Tensor  # (D,) int64
    masks: Tensor | None = None  # (D, S, S) probabilities, the cells of each box

    def __len__(self) -> int:
        return len(self.scores)

    def cpu(self) -> Detections:
        """The same on the CPU."""
        return replace(
            self,
            boxes=self.boxes.cpu(),
            scores=self.scores.cpu(),
            labels=self.labels.cpu(),
            masks=self.masks.cpu() if self.masks is not None else None,
        )

    def above(self, min_score: float) -> Detections:
        """Only those with at least this score."""
        return self.keep(self.scores >= min_score)

    def keep(self, kept: Tensor) -> Detections:
        """Only those where the mask (D,) of booleans says so, or of these indices."""
        return replace(
            self,
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            labels=self.labels[kept],
            masks=self.masks[kept] if self.masks is not None else None,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Features and targets of images that share one bucket.

    With several processes, this one's share of a global batch, or all of a small one.
    """

    features: Features  # (n, C, h, w) per level
    targets: list[Targets]
    others: int = 0  # images of the global batch that are not here but with other processes

    @property
    def image_ids(self) -> list[int]:
        return [targets.image_id for targets in self.targets]

    @property
    def sizes_hw(self) -> list[SizeHW]:
        """Valid pixels of each view, without padding."""
        return [targets.size_hw for targets in self.targets]

    @property
    def is_whole(self) -> bool:
        """Whether this is all of the global batch."""
        return self.others == 0

    @property
    def global_images(self) -> int:
        """Of the global batch."""
        return len(self.targets) + self.others

    @property
    def nbytes(self) -> int:
        """Of the features."""
        return sum(maps.nbytes for maps in self.features.values())

    def to(self, device: torch.device) -> Batch:
        """On the device, channels last: convolutions are 6 to 12 % faster so on a CPU."""
        features = {
            name: maps.to(device, memory_format=torch.channels_last)
            for name, maps in self.features.items()
        }
        targets = [targets.to(device) for targets in self.targets]
        return replace(self, features=features, targets=targets)

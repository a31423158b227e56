"""Codecs: how a feature map becomes the arrays that are stored, and back.

A codec is one frozen value. It says which arrays (parts) it stores for a map, encodes, decodes, and
states how far a decoded value may lie from the true one. What it must learn first (a rotation, the
sign of a level) it learns from the statistics of a sample, once for the whole store.
Letters: n images, C channels, h w feature cells.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedet.device import to_host
from cachedet.errors import CodecError, StoreError
from cachedet.store.codecs.statistics import LevelStatistics
from cachedet.structures import FeatureSpec

Packing = Literal["crc32c", "zstd"]
Shape = tuple[int, int, int]
State = dict[str, NDArray[Any]]
Stored = Mapping[str, Tensor]
"""Stored arrays by part, each (n, *part.shape)."""

ZSTD_LEVEL = 1  # measured: on codes of features higher levels are slower and no smaller
_CRC_NBYTES = 4


@dataclass(frozen=True, kw_only=True)
class Part:
    """One stored array of a level: what it holds for each image, and how that is packed.

    `crc32c` keeps the bytes as they are and adds their checksum; `zstd` compresses them and
    keeps the frame's own checksum. `cells_last`: a map's bytes lie in the order (h, w, C), cell
    after cell with all its channels, as convolutions read them.
    """

    name: str
    dtype: str  # numpy and zarr name
    shape: tuple[int, ...]
    packing: Packing
    cells_last: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of one image before packing."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def packed_nbytes(self) -> int:
        """Exact bytes of one packed image, for zstd the most they can be (ZSTD_COMPRESSBOUND)."""
        if self.packing == "crc32c":
            return self.nbytes + _CRC_NBYTES
        margin = (131_072 - self.nbytes) >> 11 if self.nbytes < 131_072 else 0
        return self.nbytes + (self.nbytes >> 8) + margin + _CRC_NBYTES

    def empty(self, count: int) -> NDArray[Any]:
        """Memory for `count` images, (count, *shape), each in the order of its bytes."""
        if not self.cells_last:
            return np.empty((count, *self.shape), dtype=self.dtype)
        channels, height, width = self.shape
        cells = np.empty((count, height, width, channels), dtype=self.dtype)
        return cells.transpose(0, 3, 1, 2)

    def in_order(self, values: NDArray[Any]) -> NDArray[Any]:
        """One image's values (*shape) as a view whose axes are those of its bytes."""
        return values.transpose(1, 2, 0) if self.cells_last else values


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """The arrays of n maps, by part, each (n, *part.shape), in any order of their bytes.

    They lie where the maps did, so that of an accelerator only they cross, not the maps.
    """

    parts: dict[str, Tensor]
    saturated: int = 0  # values whose code was cut off at the end of its range

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The parts on the CPU, where they are not copied if they lie there."""
        return {name: part.numpy() for name, part in to_host(self.parts).items()}


@dataclass(frozen=True, kw_only=True)
class Codec(ABC):
    """What every codec can do; one that learns nothing from a sample leaves `fit` as it is."""

    name: str
    state_names: ClassVar[tuple[str, ...]] = ()  # of each level's `{level}/{name}` in the state

    @property
    def needs_fit(self) -> bool:
        """Whether it must learn from a sample before it can encode."""
        return bool(self.state_names)

    def fit(self, statistics: Mapping[str, LevelStatistics]) -> Codec:
        """The codec for features like these; a pure function of the statistics."""
        return self

    @abstractmethod
    def parts(self, level: str, shape: Shape) -> tuple[Part, ...]:
        """The arrays it stores for a map of this shape."""

    @abstractmethod
    def encode(self, maps: Tensor, *, level: str, images: Sequence[str]) -> Encoded:
        """(n, C, h, w) floats on any device -> arrays there. Raises CodecError naming the image."""

    @abstractmethod
    def decode(
        self, parts: Stored, *, level: str, shape: Shape, out: Tensor | None = None
    ) -> Tensor:
        """Arrays (n, *part.shape) as tensors on any device -> float32 maps (n, *shape).

        New ones, or `out` filled with them.
        """

    @abstractmethod
    def error_bound(self, maps: Tensor, *, level: str) -> Tensor:
        """Largest |decode(encode(x)) - x| of each value (without saturation), broadcastable."""

    def state(self) -> State:
        """What `fit` learnt, kept inside the store."""
        return {}

    def with_state(self, state: State, *, spec: FeatureSpec) -> Codec:
        """The fitted codec. Raises StoreError where the state is not one of it for these levels."""
        return self


def state_digest(state: State) -> str:
    """sha256 over the names, types and values of a codec's state."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.asarray(state[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def take_state(
    state: State, key: str, *, codec: str, dtype: str, shape: tuple[int | None, ...]
) -> NDArray[Any]:
    """`state[key]` of this type and shape (None: any length).

    Raises StoreError where it is missing, of another type or shape, or not finite.
    """
    if key not in state:
        raise StoreError(f"the state of codec {codec} lacks {key!r}")
    array = state[key]
    fits = len(shape) == array.ndim and all(
        wanted in (None, length) for wanted, length in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        expected = f"{dtype} {str(shape).replace('None', 'any')}"
        raise StoreError(
            f"the state of codec {codec} has {key!r} as {array.dtype} {array.shape} instead of "
            f"{expected}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise StoreError(f"the state of codec {codec} has values in {key!r} that are not finite")
    return array


def require_finite(maps: Tensor, *, level: str, images: Sequence[str]) -> Tensor:
    """The maps as float32. Raises CodecError at the first NaN or Inf, naming its image."""
    exact = maps.detach().to(torch.float32)
    if not bool(torch.isfinite(torch.stack(exact.aminmax())).all()):  # NaN is kept by aminmax
        remedy = "is not a number a detector can learn from; run the backbone in fp32"
        refuse_values(exact, ~torch.isfinite(exact), remedy, level=level, images=images)
    return exact


def refuse_values(
    exact: Tensor, bad: Tensor, remedy: str, *, level: str, images: Sequence[str]
) -> None:
    """Raise CodecError for the first value marked in `bad`."""
    slot = int(bad.flatten(1).any(dim=1).nonzero()[0, 0])
    value = float(exact[slot][bad[slot]][0])
    raise CodecError(f"{images[slot]}: level {level} holds {value:g}, which {remedy}")


def as_maps(values: Tensor, out: Tensor | None) -> Tensor:
    """Values (n, C, h, w) of any type as new float32 maps, or `out` filled with them."""
    if out is None:
        return values.to(torch.float32, copy=True)
    is_cells_last = out.is_contiguous(memory_format=torch.channels_last)
    if not (is_cells_last and values.is_contiguous()):
        return out.copy_(values)
    # as matrices of one type: torch turns those in blocks, 3 times as fast as maps
    for source, cells in zip(values.flatten(2), out.permute(0, 2, 3, 1).flatten(1, 2), strict=True):
        cells.copy_(source.t().contiguous() if values.dtype != out.dtype else source.t())
    return out

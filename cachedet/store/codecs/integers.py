"""Maps stored as small integers: `int8`, `int8+zstd`, `int4`, `int4+zstd`.

value = code * scale, so a zero stays an exact zero. Letters: n images, C channels, h w cells,
G groups of a channel's cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cachedet.store.codecs.codec import (
    Codec,
    Encoded,
    Packing,
    Part,
    Shape,
    State,
    Stored,
    as_maps,
    refuse_values,
    require_finite,
    take_state,
)
from cachedet.store.codecs.statistics import LevelStatistics
from cachedet.structures import FeatureSpec

_GROUP = 64  # cells that share one scale of `int4`
_ROUNDING = 2.0**-22  # of float32 arithmetic, relative to the value
_TINY = 2.0**-126  # the smallest normal float32: below it arithmetic is coarser
_LARGEST = 1e38  # half a step beyond it a decoded value is still a float32


@dataclass(frozen=True, kw_only=True)
class Int8Codec(Codec):
    """Per channel and image one scale: its largest magnitude over 127 (255 without negatives).

    `noise_floor` keeps the step of a channel from being finer than this share of the level's root
    mean square: finer steps only cost bytes. Levels without negative values in the sample are
    stored as uint8; a later negative value there is refused.
    """

    state_names = ("nonnegative",)
    packing: Packing
    noise_floor: float
    nonnegative: Mapping[str, bool] = field(default_factory=dict)  # by level, from the sample

    def fit(self, statistics: Mapping[str, LevelStatistics]) -> Int8Codec:
        return replace(self, nonnegative={k: s.minimum >= 0 for k, s in statistics.items()})

    def parts(self, level: str, shape: Shape) -> tuple[Part, ...]:
        dtype = "uint8" if self.nonnegative[level] else "int8"
        return (
            Part(name="codes", dtype=dtype, shape=shape, packing=self.packing),
            Part(name="scale", dtype="float32", shape=shape[:1], packing="crc32c"),
        )

    def encode(self, maps: Tensor, *, level: str, images: Sequence[str]) -> Encoded:
        """Raises CodecError on NaN, Inf, beyond 1e38, or below zero in a level that was not."""
        exact = require_finite(maps, level=level, images=images)
        peak = _peak(exact)
        if bool((peak > _LARGEST).any()):
            remedy = f"is beyond the range of {self.name} (+-{_LARGEST:g}); use --codec fp32"
            refuse_values(exact, exact.abs() > _LARGEST, remedy, level=level, images=images)
        nonnegative = self.nonnegative[level]
        if nonnegative and bool(exact.amin() < 0):
            remedy = "is negative where the sample this codec was fitted on had no negative value"
            remedy += "; use --codec fp16"
            refuse_values(exact, exact < 0, remedy, level=level, images=images)
        scale = self._scale(exact, peak, level)
        divisor = torch.where(scale > 0, scale, 1.0)[:, :, None, None]
        dtype = torch.uint8 if nonnegative else torch.int8
        codes = (exact / divisor).round_()  # at most 127 or 255: no value is beyond the peak
        return Encoded(parts={"codes": codes.to(dtype), "scale": scale})

    def decode(
        self, parts: Stored, *, level: str, shape: Shape, out: Tensor | None = None
    ) -> Tensor:
        return as_maps(parts["codes"], out).mul_(parts["scale"][:, :, None, None])

    def error_bound(self, maps: Tensor, *, level: str) -> Tensor:
        exact = maps.to(torch.float32)
        half_step = self._scale(exact, _peak(exact), level)[:, :, None, None] / 2
        return half_step + exact.abs() * _ROUNDING + _TINY

    def state(self) -> State:
        return {f"{k}/nonnegative": np.array(v) for k, v in sorted(self.nonnegative.items())}

    def with_state(self, state: State, *, spec: FeatureSpec) -> Int8Codec:
        take = partial(take_state, state, codec=self.name, dtype="bool", shape=())
        nonnegative = {level: bool(take(f"{level}/nonnegative")) for level in spec.names}
        return replace(self, nonnegative=nonnegative)

    def _scale(self, exact: Tensor, peak: Tensor, level: str) -> Tensor:
        """(n, C)"""
        scale = peak / (255 if self.nonnegative[level] else 127)
        if not self.noise_floor:
            return scale
        length = torch.linalg.vector_norm(exact, dim=(1, 2, 3))
        if not bool(length.isfinite().all()):  # squares beyond float32; slower
            length = torch.linalg.vector_norm(exact, dim=(1, 2, 3), dtype=torch.float64)
        rms = length / math.sqrt(exact[0].numel())
        return torch.maximum(scale, (self.noise_floor * rms[:, None]).to(scale.dtype))


@dataclass(frozen=True, kw_only=True)
class Int4Codec(Codec):
    """Per 64 cells of a channel one fp16 scale; codes -7 to 7, two to a byte, lower half first."""

    packing: Packing

    def parts(self, level: str, shape: Shape) -> tuple[Part, ...]:
        channels, height, width = shape
        cells = height * width
        groups = math.ceil(cells / _GROUP)
        codes = (channels, math.ceil(cells / 2))
        return (
            Part(name="nibbles", dtype="uint8", shape=codes, packing=self.packing),
            Part(name="scale", dtype="float16", shape=(channels, groups), packing="crc32c"),
        )

    def encode(self, maps: Tensor, *, level: str, images: Sequence[str]) -> Encoded:
        """Raises CodecError on NaN, Inf, or a value beyond 7 times the largest fp16."""
        exact = require_finite(maps, level=level, images=images)
        scale = _group_scale(exact)
        if bool(torch.isinf(scale).any()):
            remedy = "is beyond the range of int4 scales (+-458528); use --codec fp32"
            too_large = exact.abs() > 7 * torch.finfo(torch.float16).max
            refuse_values(exact, too_large, remedy, level=level, images=images)
        steps = _spread(scale.float(), exact.shape)
        codes = (exact / torch.where(steps > 0, steps, 1.0)).round_().clamp_(-7, 7)
        return Encoded(parts={"nibbles": pack_nibbles(codes), "scale": scale})

    def decode(
        self, parts: Stored, *, level: str, shape: Shape, out: Tensor | None = None
    ) -> Tensor:
        codes = unpack_nibbles(parts["nibbles"], shape)
        maps = codes.mul_(_spread(parts["scale"].float(), codes.shape))
        return maps if out is None else as_maps(maps, out)

    def error_bound(self, maps: Tensor, *, level: str) -> Tensor:
        exact = maps.to(torch.float32)
        scale = _group_scale(exact).float()
        return _spread(scale, exact.shape) / 2 + exact.abs() * _ROUNDING + _TINY


def pack_nibbles(codes: Tensor) -> Tensor:
    """(n, C, h, w) whole numbers -8..7 -> (n, C, ceil(h w / 2)) uint8, offset by 8."""
    flat = codes.flatten(2).add(8).to(torch.uint8)
    if flat.shape[2] % 2:
        flat = F.pad(flat, (0, 1), value=8)
    return flat[:, :, 0::2] | (flat[:, :, 1::2] << 4)


def unpack_nibbles(nibbles: Tensor, shape: Shape) -> Tensor:
    """Inverse of `pack_nibbles`: new float32 codes (n, C, h, w)."""
    channels, height, width = shape
    pairs = torch.stack([nibbles & 15, nibbles >> 4], dim=3).flatten(2)
    cells = pairs[:, :, : height * width].to(torch.float32).sub_(8)
    return cells.reshape(len(nibbles), channels, height, width)


def _peak(exact: Tensor) -> Tensor:
    """(n, C) largest magnitude of each channel."""
    low, high = exact.flatten(2).aminmax(dim=2)
    return torch.maximum(-low, high)


def _group_scale(exact: Tensor) -> Tensor:
    """(n, C, G) fp16, rounded up so that no code goes beyond 7."""
    flat = exact.abs().flatten(2)
    padded = F.pad(flat, (0, -flat.shape[2] % _GROUP))
    peak = padded.reshape(*padded.shape[:2], -1, _GROUP).amax(dim=3) / 7
    rounded = peak.to(torch.float16)
    up = (rounded.view(torch.int16) + 1).view(torch.float16)  # the next one: none is below zero
    return torch.where(rounded.float() < peak, up, rounded)


def _spread(scale: Tensor, shape: torch.Size) -> Tensor:
    """(n, C, G) -> one value for each cell, (n, C, h, w)."""
    cells = shape[2] * shape[3]
    return scale.repeat_interleave(_GROUP, dim=2)[:, :, :cells].reshape(shape)


INT_CODECS = {
    codec.name: codec
    for codec in (
        Int8Codec(name="int8", packing="crc32c", noise_floor=0.0),
        Int8Codec(name="int8+zstd", packing="zstd", noise_floor=0.05),
        Int4Codec(name="int4", packing="crc32c"),
        Int4Codec(name="int4+zstd", packing="zstd"),
    )
}

"""Maps rotated onto the principal components of their channels: `pca<k>+int8`, `snr<dB>`.

One orthogonal projection per level, fitted on a sample and kept in the store, is undone on read.
Letters: n images, C channels, K components kept, h w cells.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cachedet.errors import StoreError
from cachedet.store.codecs.codec import (
    Codec,
    Encoded,
    Part,
    Shape,
    State,
    Stored,
    as_maps,
    refuse_values,
    require_finite,
    take_state,
)
from cachedet.store.codecs.integers import Int8Codec, pack_nibbles, unpack_nibbles
from cachedet.store.codecs.statistics import LevelStatistics
from cachedet.structures import FeatureSpec

_DEAD_ZONE = 0.4  # codes are floor(|y| / step + this): 0.5 would be plain rounding
_WIDE = 127  # largest code of a component stored in eight bits
_NARROW = 7  # largest code of a component stored in four bits
_NARROW_SIGMAS = 4.5  # a component goes there if this many of its deviations fit
_FLOAT_SLACK = 1e-4  # float32 rounding of a rotation, relative to the length of a cell's vector
_TINY = 2.0**-60  # squares of smaller numbers vanish in float32
_LARGEST = 2.0**100  # sums over channels of such values are still float32
_MOST_CUT_OFF = 0.7  # of an image's length, by codes at the end of their range: 3 dB are left
_PROJECTION = ("basis", "mean", "explained")
SNR_RANGE = range(3, 25)  # dB; finer steps would not fit into eight bits


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """y = basis (x - mean) over the channels; the rows of `basis` are orthonormal."""

    basis: Tensor  # (K, C) float32
    mean: Tensor  # (C,) float32
    explained: float  # share of the sample's variance that the K components hold

    def forward(self, maps: Tensor) -> Tensor:
        """(n, C, h, w) -> (n, K, h, w)"""
        centred = maps.flatten(2) - self.mean.to(maps.device)[:, None]
        rotated = self.basis.to(maps.device) @ centred
        return rotated.reshape(len(maps), -1, *maps.shape[2:])

    def backward(self, components: Tensor, out: Tensor | None = None) -> Tensor:
        """(n, K, h, w) -> (n, C, h, w), new or `out` filled with them."""
        maps = self.basis.T.to(components.device) @ components.flatten(2)
        maps += self.mean.to(maps.device)[:, None]
        maps = maps.reshape(len(maps), -1, *components.shape[2:])
        return maps if out is None else as_maps(maps, out)

    def lost(self, maps: Tensor) -> Tensor:
        """Length of what the projection drops in each cell, (n, 1, h, w)."""
        return _length(maps - self.backward(self.forward(maps)))


def principal_components(statistics: LevelStatistics) -> tuple[Tensor, Tensor]:
    """Components (C, C) in rows and their variances (C,), largest first; float64."""
    variances, vectors = torch.linalg.eigh(statistics.covariance)
    rows = vectors.flip(1).T
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return rows * largest.sign(), variances.flip(0).clamp(min=0)


def make_projection(statistics: LevelStatistics, components: int) -> Projection:
    """Onto the first `components` principal components, or all there are."""
    rows, variances = principal_components(statistics)
    total = float(variances.sum())
    return Projection(
        basis=rows[:components].float().contiguous(),
        mean=statistics.mean.float(),
        explained=float(variances[:components].sum()) / total if total > 0 else 1.0,
    )


@dataclass(frozen=True, kw_only=True)
class PcaCodec(Codec):
    """`pca<k>+int8`: the first k components, each as in `int8+zstd`."""

    state_names = _PROJECTION
    components: int
    projections: Mapping[str, Projection] = field(default_factory=dict)

    @property
    def _inner(self) -> Int8Codec:
        signed = dict.fromkeys(self.projections, False)
        return Int8Codec(name=self.name, packing="zstd", noise_floor=0.05, nonnegative=signed)

    def fit(self, statistics: Mapping[str, LevelStatistics]) -> PcaCodec:
        projections = {k: make_projection(s, self.components) for k, s in statistics.items()}
        return replace(self, projections=projections)

    def parts(self, level: str, shape: Shape) -> tuple[Part, ...]:
        return self._inner.parts(level, (len(self.projections[level].basis), *shape[1:]))

    def encode(self, maps: Tensor, *, level: str, images: Sequence[str]) -> Encoded:
        """Raises CodecError on NaN, Inf, or beyond 2^100."""
        exact = _require_range(maps, level=level, images=images, codec=self.name)
        rotated = self.projections[level].forward(exact)
        return self._inner.encode(rotated, level=level, images=images)

    def decode(
        self, parts: Stored, *, level: str, shape: Shape, out: Tensor | None = None
    ) -> Tensor:
        rotated = self._inner.decode(parts, level=level, shape=shape)
        return self.projections[level].backward(rotated, out)

    def error_bound(self, maps: Tensor, *, level: str) -> Tensor:
        """A bound of the error's length in each cell, hence of each value: (n, 1, h, w)."""
        projection = self.projections[level]
        exact = maps.to(torch.float32)
        steps = self._inner.error_bound(projection.forward(exact), level=level)
        return projection.lost(exact) + _length(steps) + _slack(exact)

    def state(self) -> State:
        return _projection_state(self.projections)

    def with_state(self, state: State, *, spec: FeatureSpec) -> PcaCodec:
        projections = _load_projections(state, spec, codec=self.name)
        for level, projection in projections.items():
            kept, channels = projection.basis.shape
            if kept != min(self.components, channels):
                raise StoreError(
                    f"the state of codec {self.name} has {kept} components in '{level}/basis'"
                )
        return replace(self, projections=projections)


@dataclass(frozen=True, kw_only=True)
class SnrCodec(Codec):
    """`snr<dB>`: one step for all components, as coarse as that signal-to-noise ratio allows.

    With one shared step every component gets the bytes its variance is worth (reverse
    water-filling), and those below the noise get none. Codes that fit into four bits share bytes.
    """

    state_names = (*_PROJECTION, "step", "wide")
    decibels: int
    projections: Mapping[str, Projection] = field(default_factory=dict)
    steps: Mapping[str, float] = field(default_factory=dict)
    wide: Mapping[str, int] = field(default_factory=dict)  # components that need eight bits

    def fit(self, statistics: Mapping[str, LevelStatistics]) -> SnrCodec:
        projections, steps, wide = {}, {}, {}
        for level, sample in statistics.items():
            _, variances = principal_components(sample)
            step = _shared_step(variances, sample.power * 10 ** (-self.decibels / 10))
            kept = max(1, int((variances > step**2 / 12).sum()))
            deviations = variances[:kept].sqrt()
            projections[level] = make_projection(sample, kept)
            steps[level] = float(np.float32(min(step, _LARGEST)))
            wide[level] = int((deviations * _NARROW_SIGMAS > (_NARROW + 0.5) * step).sum())
        return replace(self, projections=projections, steps=steps, wide=wide)

    def parts(self, level: str, shape: Shape) -> tuple[Part, ...]:
        _, height, width = shape
        wide = self.wide[level]
        narrow = len(self.projections[level].basis) - wide
        pairs = math.ceil(height * width / 2)
        parts = (
            Part(name="codes", dtype="int8", shape=(wide, height, width), packing="zstd"),
            Part(name="nibbles", dtype="uint8", shape=(narrow, pairs), packing="zstd"),
        )
        return tuple(part for part in parts if part.shape[0])

    def encode(self, maps: Tensor, *, level: str, images: Sequence[str]) -> Encoded:
        """Counts codes cut off at the end of their range.

        Raises CodecError on NaN, Inf, beyond 2^100, or where an image would lose half its energy
        in codes that were cut off: it is nothing like the sample.
        """
        exact = _require_range(maps, level=level, images=images, codec=self.name)
        scaled = self.projections[level].forward(exact) / self.steps[level]
        codes = scaled.sign() * (scaled.abs() + _DEAD_ZONE).floor_()
        wide = codes[:, : self.wide[level]]
        narrow = codes[:, self.wide[level] :]
        saturated = int((wide.abs() > _WIDE).sum() + (narrow.abs() > _NARROW).sum())
        if saturated:
            self._require_alike(exact, codes, level=level, images=images)
        stored = {
            "codes": wide.clamp(-_WIDE, _WIDE).to(torch.int8),
            "nibbles": pack_nibbles(narrow.clamp(-_NARROW, _NARROW)),
        }
        return Encoded(
            parts={name: part for name, part in stored.items() if part.shape[1]},
            saturated=saturated,
        )

    def _require_alike(
        self, exact: Tensor, codes: Tensor, *, level: str, images: Sequence[str]
    ) -> None:
        """Raises CodecError where cutting off codes costs more than half of an image's energy."""
        step = self.steps[level]
        ends = torch.full((codes.shape[1], 1, 1), float(_NARROW), device=codes.device)
        ends[: self.wide[level]] = _WIDE
        top = exact.abs().amax(dim=(1, 2, 3), keepdim=True)
        peak = top.clamp(min=step)
        lost = _image_length((codes.abs() - ends).clamp_(min=0).mul_(step / peak))
        # a dark image may lose as much as one of the sample, whose energy the step tells
        sample = step * math.sqrt(10 ** (self.decibels / 10) / 12 * exact[0].numel())
        length = torch.maximum(_image_length(exact / peak), sample / peak.flatten())
        bad = ~(lost <= _MOST_CUT_OFF * length)  # NaN is bad
        if bool(bad.any()):
            remedy = (
                f"is so far from the sample {self.name} was fitted on that more than half of the "
                "image would be cut off; use --codec int8 or fp16"
            )
            largest = (exact.abs() == top) & bad[:, None, None, None]
            refuse_values(exact, largest, remedy, level=level, images=images)

    def decode(
        self, parts: Stored, *, level: str, shape: Shape, out: Tensor | None = None
    ) -> Tensor:
        components = []
        if "codes" in parts:
            components.append(parts["codes"].to(torch.float32))
        if "nibbles" in parts:
            narrow = len(self.projections[level].basis) - self.wide[level]
            components.append(unpack_nibbles(parts["nibbles"], (narrow, *shape[1:])))
        rotated = torch.cat(components, dim=1).mul_(self.steps[level])
        return self.projections[level].backward(rotated, out)

    def error_bound(self, maps: Tensor, *, level: str) -> Tensor:
        """A bound of the error's length in each cell, hence of each value: (n, 1, h, w)."""
        projection = self.projections[level]
        exact = maps.to(torch.float32)
        rounding = (1 - _DEAD_ZONE) * self.steps[level] * math.sqrt(len(projection.basis))
        return projection.lost(exact) + rounding + _slack(exact)

    def state(self) -> State:
        state = _projection_state(self.projections)
        for level in self.projections:
            state[f"{level}/step"] = np.array(self.steps[level], dtype=np.float32)
            state[f"{level}/wide"] = np.array(self.wide[level], dtype=np.int64)
        return state

    def with_state(self, state: State, *, spec: FeatureSpec) -> SnrCodec:
        projections = _load_projections(state, spec, codec=self.name)
        take = partial(take_state, state, codec=self.name, shape=())
        steps, wide = {}, {}
        for level, projection in projections.items():
            steps[level] = float(take(f"{level}/step", dtype="float32"))
            wide[level] = int(take(f"{level}/wide", dtype="int64"))
            kept = len(projection.basis)
            if not (steps[level] > 0 and 0 <= wide[level] <= kept):
                raise StoreError(
                    f"the state of codec {self.name} has step {steps[level]} and {wide[level]} of "
                    f"{kept} wide components in level {level}"
                )
        return replace(self, projections=projections, steps=steps, wide=wide)


def _require_range(maps: Tensor, *, level: str, images: Sequence[str], codec: str) -> Tensor:
    """The maps as float32. Raises CodecError where a sum over channels could overflow."""
    exact = require_finite(maps, level=level, images=images)
    if bool(torch.stack(exact.aminmax()).abs().amax() > _LARGEST):
        remedy = f"is beyond the range of {codec} (+-{_LARGEST:.3g}); use --codec fp32"
        refuse_values(exact, exact.abs() > _LARGEST, remedy, level=level, images=images)
    return exact


def _image_length(maps: Tensor) -> Tensor:
    """(n,) root of the sum of squares of each image."""
    length: Tensor = torch.linalg.vector_norm(maps, dim=(1, 2, 3))
    return length


def _slack(exact: Tensor) -> Tensor:
    return _length(exact) * _FLOAT_SLACK + _TINY


def _length(maps: Tensor) -> Tensor:
    """Length of the vector in each cell: (n, C, h, w) -> (n, 1, h, w)."""
    return maps.square().sum(dim=1, keepdim=True).sqrt()


def parse_pca_codec(name: str) -> PcaCodec | SnrCodec | None:
    """`pca64+int8` or `snr12` as a codec that is not fitted yet; None for any other name."""
    if (match := re.fullmatch(r"pca([1-9]\d{0,4})\+int8", name)) is not None:
        return PcaCodec(name=name, components=int(match[1]))
    if (match := re.fullmatch(r"snr(\d{1,2})", name)) is not None and int(match[1]) in SNR_RANGE:
        return SnrCodec(name=f"snr{int(match[1])}", decibels=int(match[1]))
    return None


def _shared_step(variances: Tensor, noise: float) -> float:
    """The step whose mean square error, min(variance, step^2 / 12) a component, is `noise`."""
    low, high = 0.0, math.sqrt(12 * float(variances.max()) + 1e-30)
    for _ in range(60):
        middle = (low + high) / 2
        if float(variances.clamp(max=middle**2 / 12).mean()) < noise:
            low = middle
        else:
            high = middle
    return high if high > 0 else 1.0


def _projection_state(projections: Mapping[str, Projection]) -> State:
    state: State = {}
    for level, projection in projections.items():
        state[f"{level}/basis"] = projection.basis.numpy()
        state[f"{level}/mean"] = projection.mean.numpy()
        state[f"{level}/explained"] = np.array(projection.explained)
    return state


def _load_projections(state: State, spec: FeatureSpec, *, codec: str) -> dict[str, Projection]:
    """Raises StoreError, before anything is made of sizes that do not fit the levels."""
    take = partial(take_state, state, codec=codec)
    projections = {}
    for level in spec:
        channels, key = level.channels, f"{level.name}/basis"
        basis = take(key, dtype="float32", shape=(None, channels))
        if not 1 <= len(basis) <= channels:
            raise StoreError(
                f"the state of codec {codec} has {len(basis)} components of {channels} channels in "
                f"{key!r}"
            )
        mean = take(f"{level.name}/mean", dtype="float32", shape=(channels,))
        explained = take(f"{level.name}/explained", dtype="float64", shape=())
        projections[level.name] = Projection(
            basis=torch.from_numpy(basis), mean=torch.from_numpy(mean), explained=float(explained)
        )
    return projections

"""Maps rotated onto the principal components of their channels: `pca<k>+int8`, `snr<dB>`.

One orthogonal projection per level, fitted on a sample and kept in the store, is undone on read.
Letters: n pictures, C channels, K components kept, h w cells.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from cachedet.store.codec import Encoded, Part, Shape, State, as_array, require_finite, take_state
from cachedet.store.codec_int import Int8Codec, pack_nibbles, unpack_nibbles
from cachedet.store.statistics import LevelStatistics

_DEAD_ZONE = 0.4  # codes are floor(|y| / step + this): 0.5 would be plain rounding
_NARROW = 7  # largest code of a component stored in four bits
_NARROW_SIGMAS = 4.5  # a component goes there if this many of its deviations fit
_FLOAT_SLACK = 1e-4  # float32 rounding of a rotation, relative to the length of a cell's vector
_TINY = 2.0**-60  # squares of smaller numbers vanish in float32
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

    def backward(self, components: Tensor) -> Tensor:
        """(n, K, h, w) -> (n, C, h, w)"""
        maps = self.basis.T.to(components.device) @ components.flatten(2)
        maps += self.mean.to(maps.device)[:, None]
        return maps.reshape(len(maps), -1, *components.shape[2:])

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
class PcaCodec:
    """`pca<k>+int8`: the first k components, each as in `int8+zstd`."""

    components: int
    projections: Mapping[str, Projection] = field(default_factory=dict)
    needs_fit: bool = True

    @property
    def name(self) -> str:
        return f"pca{self.components}+int8"

    @property
    def _inner(self) -> Int8Codec:
        signed = dict.fromkeys(self.projections, False)
        return Int8Codec(name=self.name, packing="zstd", noise_floor=0.05, nonnegative=signed)

    def fit(self, statistics: Mapping[str, LevelStatistics]) -> PcaCodec:
        found = {k: make_projection(s, self.components) for k, s in statistics.items()}
        return replace(self, projections=found)

    def parts(self, level: str, shape: Shape) -> tuple[Part, ...]:
        return self._inner.parts(level, (len(self.projections[level].basis), *shape[1:]))

    def encode(self, maps: Tensor, *, level: str, pictures: Sequence[str]) -> Encoded:
        """Raises CodecError on NaN or Inf."""
        exact = require_finite(maps, level=level, pictures=pictures)
        rotated = self.projections[level].forward(exact)
        return self._inner.encode(rotated, level=level, pictures=pictures)

    def decode(self, parts: Mapping[str, Tensor], *, level: str, shape: Shape) -> Tensor:
        return self.projections[level].backward(self._inner.decode(parts, level=level, shape=shape))

    def error_bound(self, maps: Tensor, *, level: str) -> Tensor:
        """A bound of the error's length in each cell, hence of each value: (n, 1, h, w)."""
        projection = self.projections[level]
        exact = maps.to(torch.float32)
        steps = self._inner.error_bound(projection.forward(exact), level=level)
        return projection.lost(exact) + _length(steps) + _slack(exact)

    def state(self) -> State:
        return _projection_state(self.projections)

    def with_state(self, state: State) -> PcaCodec:
        return replace(self, projections=_load_projections(state, codec=self.name))


@dataclass(frozen=True, kw_only=True)
class SnrCodec:
    """`snr<dB>`: one step for all components, as coarse as that signal-to-noise ratio allows.

    With one shared step every component gets the bytes its variance is worth (reverse
    water-filling), and those below the noise get none. Codes that fit into four bits share bytes.
    """

    decibels: int
    projections: Mapping[str, Projection] = field(default_factory=dict)
    steps: Mapping[str, float] = field(default_factory=dict)
    wide: Mapping[str, int] = field(default_factory=dict)  # components that need eight bits
    needs_fit: bool = True

    @property
    def name(self) -> str:
        return f"snr{self.decibels}"

    def fit(self, statistics: Mapping[str, LevelStatistics]) -> SnrCodec:
        projections, steps, wide = {}, {}, {}
        for level, sample in statistics.items():
            _, variances = principal_components(sample)
            step = _shared_step(variances, sample.power * 10 ** (-self.decibels / 10))
            kept = max(1, int((variances > step**2 / 12).sum()))
            deviations = variances[:kept].sqrt()
            projections[level] = make_projection(sample, kept)
            steps[level] = float(np.float32(step))
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

    def encode(self, maps: Tensor, *, level: str, pictures: Sequence[str]) -> Encoded:
        """Raises CodecError on NaN or Inf; counts codes cut off at the end of their range."""
        exact = require_finite(maps, level=level, pictures=pictures)
        scaled = self.projections[level].forward(exact) / self.steps[level]
        codes = scaled.sign() * (scaled.abs() + _DEAD_ZONE).floor_()
        wide = codes[:, : self.wide[level]]
        narrow = codes[:, self.wide[level] :]
        saturated = int((wide.abs() > 127).sum() + (narrow.abs() > _NARROW).sum())
        stored = {
            "codes": wide.clamp(-127, 127).to(torch.int8),
            "nibbles": pack_nibbles(narrow.clamp(-_NARROW, _NARROW)),
        }
        return Encoded(
            parts={name: as_array(part) for name, part in stored.items() if part.shape[1]},
            saturated=saturated,
        )

    def decode(self, parts: Mapping[str, Tensor], *, level: str, shape: Shape) -> Tensor:
        components = []
        if "codes" in parts:
            components.append(parts["codes"].to(torch.float32))
        if "nibbles" in parts:
            narrow = len(self.projections[level].basis) - self.wide[level]
            components.append(unpack_nibbles(parts["nibbles"], (narrow, *shape[1:])))
        rotated = torch.cat(components, dim=1).mul_(self.steps[level])
        return self.projections[level].backward(rotated)

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

    def with_state(self, state: State) -> SnrCodec:
        projections = _load_projections(state, codec=self.name)
        return replace(
            self,
            projections=projections,
            steps={k: float(take_state(state, f"{k}/step", codec=self.name)) for k in projections},
            wide={k: int(take_state(state, f"{k}/wide", codec=self.name)) for k in projections},
        )


def _slack(exact: Tensor) -> Tensor:
    return _length(exact) * _FLOAT_SLACK + _TINY


def _length(maps: Tensor) -> Tensor:
    """Of the vector in each cell: (n, C, h, w) -> (n, 1, h, w)."""
    return maps.square().sum(dim=1, keepdim=True).sqrt()


def parse_pca_codec(name: str) -> PcaCodec | SnrCodec | None:
    """`pca64+int8` or `snr12` as a codec that is not fitted yet; None for any other name."""
    if (match := re.fullmatch(r"pca([1-9]\d{0,4})\+int8", name)) is not None:
        return PcaCodec(components=int(match[1]))
    if (match := re.fullmatch(r"snr(\d{1,2})", name)) is not None and int(match[1]) in SNR_RANGE:
        return SnrCodec(decibels=int(match[1]))
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


def _load_projections(state: State, *, codec: str) -> dict[str, Projection]:
    levels = [key.removesuffix("/basis") for key in state if key.endswith("/basis")]
    return {
        level: Projection(
            basis=torch.from_numpy(state[f"{level}/basis"]),
            mean=torch.from_numpy(take_state(state, f"{level}/mean", codec=codec)),
            explained=float(take_state(state, f"{level}/explained", codec=codec)),
        )
        for level in levels
    }

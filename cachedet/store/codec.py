"""Codecs: how a feature map becomes the numbers that are stored.

A codec is one frozen value with a stated error bound. It refuses what it cannot represent, with
the name of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedet.errors import CodecError, InputError, nearest_names


@dataclass(frozen=True, kw_only=True)
class FloatCodec:
    """Maps stored as IEEE floats, little-endian; a chunk that was never written reads as NaN."""

    name: str
    dtype: str  # numpy and zarr name
    relative_error: float  # of normal numbers
    absolute_error: float  # of subnormal numbers

    def encode(self, maps: Tensor, *, level: str, pictures: Sequence[str]) -> NDArray[Any]:
        """(n, C, h, w) floats -> array of `dtype` and the same shape.

        Raises CodecError on NaN, Inf or a value beyond the range of `dtype`.
        """
        exact = maps.detach().to("cpu", torch.float32).contiguous().numpy()
        with np.errstate(over="ignore"):  # an overflow is found below, with its picture
            encoded = exact.astype(self.dtype)
        if not np.isfinite(encoded).all():
            self._refuse(exact, encoded, level=level, pictures=pictures)
        return encoded

    def decode(self, encoded: NDArray[Any]) -> Tensor:
        """Array of `dtype` -> float32 tensor of the same shape."""
        return torch.from_numpy(encoded.astype(np.float32))

    def encoded_nbytes(self, shape: Sequence[int]) -> int:
        """Exact bytes of an encoded array, without the container's checksums."""
        return math.prod(shape) * np.dtype(self.dtype).itemsize

    def error_bound(self, values: Tensor) -> Tensor:
        """Largest |decode(encode(x)) - x| for each x."""
        return (values.abs() * self.relative_error).clamp(min=self.absolute_error)

    def _refuse(
        self,
        exact: NDArray[np.float32],
        encoded: NDArray[Any],
        *,
        level: str,
        pictures: Sequence[str],
    ) -> None:
        bad = ~np.isfinite(encoded)
        slot = int(np.flatnonzero(bad.any(axis=(1, 2, 3)))[0])
        value = float(exact[slot][bad[slot]][0])
        if math.isfinite(value):
            remedy = f"is beyond the range of {self.name} (+-65504); use --codec fp32"
        else:
            remedy = "is not a number a detector can learn from; run the backbone in fp32"
        raise CodecError(f"{pictures[slot]}: level {level} holds {value:g}, which {remedy}")


# Round to nearest: half a unit in the last of 11 significant bits, or half the smallest subnormal.
CODECS = {
    "fp32": FloatCodec(name="fp32", dtype="float32", relative_error=0.0, absolute_error=0.0),
    "fp16": FloatCodec(
        name="fp16", dtype="float16", relative_error=2.0**-11, absolute_error=2.0**-25
    ),
}


def make_codec(name: str) -> FloatCodec:
    """The codec called `name`. Raises InputError on an unknown one."""
    if name not in CODECS:
        near = nearest_names(name, CODECS)
        raise InputError(f"unknown codec {name!r}{near}; known: {', '.join(CODECS)}")
    return CODECS[name]

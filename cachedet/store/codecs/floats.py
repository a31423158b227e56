"""Maps stored as floats: `fp32` (the reference), `fp16`, `bf16`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cachedet.store.codecs.codec import (
    Codec,
    Encoded,
    Part,
    Shape,
    Stored,
    as_maps,
    refuse_values,
    require_finite,
)


@dataclass(frozen=True, kw_only=True)
class FloatCodec(Codec):
    """One part `values`. bf16 is stored as its bits in uint16: zarr 3.1 knows no bfloat16."""

    dtype: torch.dtype
    stored: str  # numpy and zarr name of what is stored

    def parts(self, level: str, shape: Shape) -> tuple[Part, ...]:
        return (Part(name="values", dtype=self.stored, shape=shape, packing="crc32c"),)

    def encode(self, maps: Tensor, *, level: str, images: Sequence[str]) -> Encoded:
        """Raises CodecError on NaN, Inf or a value beyond the range of the stored type."""
        exact = require_finite(maps, level=level, images=images)
        rounded = exact.to(self.dtype)
        if not bool(torch.isfinite(rounded).all()):
            largest = torch.finfo(self.dtype).max
            remedy = f"is beyond the range of {self.name} (+-{largest:g}); use --codec fp32"
            refuse_values(exact, ~torch.isfinite(rounded), remedy, level=level, images=images)
        bits = rounded.view(torch.uint16) if self.stored == "uint16" else rounded
        return Encoded(parts={"values": bits})

    def decode(
        self, parts: Stored, *, level: str, shape: Shape, out: Tensor | None = None
    ) -> Tensor:
        values = parts["values"]
        return as_maps(values.view(self.dtype) if self.stored == "uint16" else values, out)

    def error_bound(self, maps: Tensor, *, level: str) -> Tensor:
        """Half a unit in the last bit; of subnormal numbers half the smallest one."""
        if self.dtype == torch.float32:
            return torch.zeros_like(maps)
        info = torch.finfo(self.dtype)
        return (maps.abs() * (info.eps / 2)).clamp(min=info.smallest_normal * info.eps / 2)


FLOAT_CODECS = {
    name: FloatCodec(name=name, dtype=dtype, stored=stored)
    for name, dtype, stored in (
        ("fp32", torch.float32, "float32"),
        ("fp16", torch.float16, "float16"),
        ("bf16", torch.bfloat16, "uint16"),
    )
}

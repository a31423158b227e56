"""Stored arrays of pictures between reading and decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from cachedet.structures import SizeHW


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedFeatures:
    """Stored arrays of n pictures of one bucket, checked but not decoded."""

    bucket: SizeHW
    arrays: dict[str, dict[str, NDArray[Any]]]  # level -> part -> (n, *part.shape)

    def require_fits(self, bucket: SizeHW, count: int, levels: Sequence[str]) -> None:
        """Raises ValueError where these are not buffers for such a read."""
        if self.bucket != bucket:
            raise ValueError(f"the buffers are of bucket {self.bucket}, the pictures of {bucket}")
        for level in levels:
            if level not in self.arrays:
                raise ValueError(
                    f"the buffers are of levels {', '.join(self.arrays)}, not {level!r}"
                )
            for array in self.arrays[level].values():
                if len(array) != count:
                    raise ValueError(f"the buffers are for {len(array)} pictures, {count} are read")

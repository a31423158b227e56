"""Windows of a fixed size in pixels of the image: as many as it takes, so not views of a store."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from cachedet.data.geometry import Geometry
from cachedet.data.views import View, make_geometry, parse_views, round_up
from cachedet.errors import InputError
from cachedet.structures import SizeHW

LEAST_PIXELS, MOST_PIXELS = 64, 8192
_ITEM = re.compile(r"tile=([0-9]{1,9})px")
_BASE = View(family="base")


@dataclass(frozen=True, kw_only=True)
class PixelWindows:
    """Square windows that overlap by a fifth of their side or more, and end with the image."""

    side: int  # in pixels of the image

    def geometries(
        self, image_hw: SizeHW, *, image_size: int, pad_multiple: int
    ) -> tuple[Geometry, ...]:
        """Row by row, each enlarged or reduced so that a full side becomes `image_size`.

        An image that is not larger than a window has one, which is the base view.
        """
        if max(image_hw) <= self.side:
            base = make_geometry(
                _BASE,
                image_hw=image_hw,
                image_id=0,
                image_size=image_size,
                pad_multiple=pad_multiple,
            )
            return (base,)
        scale = image_size / self.side
        scaled_hw = max(1, round(image_hw[0] * scale)), max(1, round(image_hw[1] * scale))
        valid_hw = min(scaled_hw[0], image_size), min(scaled_hw[1], image_size)
        padded_hw = round_up(valid_hw[0], pad_multiple), round_up(valid_hw[1], pad_multiple)
        rows, columns = (
            _starts(self._count(side), rest=scaled - valid)
            for side, scaled, valid in zip(image_hw, scaled_hw, valid_hw, strict=True)
        )
        return tuple(
            Geometry(
                image_hw=image_hw,
                scaled_hw=scaled_hw,
                offset_yx=(row, column),
                valid_hw=valid_hw,
                padded_hw=padded_hw,
                flip=False,
                is_cut_out=True,
            )
            for row, column in itertools.product(rows, columns)
        )

    def _count(self, side: int) -> int:
        """Of windows in a row: (side - overlap) / (window - overlap), rounded up."""
        return max(1, -(-(5 * side - self.side) // (4 * self.side)))


def parse_file_views(text: str) -> tuple[tuple[View, ...], tuple[PixelWindows, ...]]:
    """``"base,tile=640px"`` -> the views that `parse_views` knows, and the windows in pixels.

    Raises InputError as `parse_views` does, and on windows too small, too large or named twice.
    """
    items = [item.strip() for item in text.split(",")]
    matches = [(item, _ITEM.fullmatch(item)) for item in items]
    sides = [int(match[1]) for _, match in matches if match]
    for side in sides:
        if not LEAST_PIXELS <= side <= MOST_PIXELS:
            raise InputError(
                f"tile={side}px: expected {LEAST_PIXELS} to {MOST_PIXELS} pixels of the image, as "
                "tile=640px"
            )
        if sides.count(side) > 1:
            raise InputError(
                f"views must name each view once, got tile={side}px more than once in {text!r}"
            )
    others = ",".join(item for item, match in matches if not match)
    views = parse_views(others) if others.strip(", ") or not sides else ()
    return views, tuple(PixelWindows(side=side) for side in sides)


def _starts(count: int, *, rest: int) -> list[int]:
    """Spread evenly over what a window leaves of a side; none twice."""
    return sorted({round(number * rest / max(1, count - 1)) for number in range(count)})

"""Blocks: up to B pictures of one view and one bucket, the unit of work, commit and repair."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cachedet.data.views import View, padded_size
from cachedet.structures import SizeHW, Truth


@dataclass(frozen=True, kw_only=True)
class Block:
    """Slots `number * B` to `number * B + len(rows)` of the arrays of one view and bucket."""

    view: str
    bucket: SizeHW  # padded (height, width)
    number: int
    rows: tuple[int, ...]  # rows of the truth, in slot order

    @property
    def group(self) -> str:
        """Path of the zarr group that holds its arrays, relative to the store."""
        return f"{self.view}/b{self.bucket[0]}x{self.bucket[1]}"

    @property
    def name(self) -> str:
        return f"{self.view}-b{self.bucket[0]}x{self.bucket[1]}-{self.number:06d}"


def plan_blocks(
    *, truth: Truth, views: Iterable[View], image_size: int, pad_multiple: int, block_size: int
) -> tuple[Block, ...]:
    """Every (picture, view) in exactly one block: a pure function of its arguments.

    Pictures keep the order of their rows within a bucket, so a block never depends on which
    blocks were written before it.
    """
    blocks = []
    for view in views:
        for bucket, rows in _rows_by_bucket(truth, view, image_size, pad_multiple).items():
            for number, start in enumerate(range(0, len(rows), block_size)):
                members = tuple(rows[start : start + block_size])
                blocks.append(Block(view=view.name, bucket=bucket, number=number, rows=members))
    return tuple(blocks)


def _rows_by_bucket(
    truth: Truth, view: View, image_size: int, pad_multiple: int
) -> dict[SizeHW, list[int]]:
    bucket_of: dict[SizeHW, SizeHW] = {}
    rows: dict[SizeHW, list[int]] = {}
    for row, (height, width) in enumerate(truth.sizes_hw.tolist()):
        size = (height, width)
        if size not in bucket_of:
            bucket_of[size] = padded_size(
                view, picture_hw=size, image_size=image_size, pad_multiple=pad_multiple
            )
        rows.setdefault(bucket_of[size], []).append(row)
    return rows

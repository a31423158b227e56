from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.data.views import make_geometry, parse_views, view_named
from cachedet.store.format.layout import plan_blocks

VIEWS = parse_views("base,hflip,scale=0.5,crop=2,jitter=2,jitter=1:0.5-4")


def test_every_image_and_view_lies_in_exactly_one_block(annotations_of: Any) -> None:
    @settings(deadline=None, max_examples=60, derandomize=True)
    @given(
        sizes=st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), max_size=40),
        block_size=st.integers(1, 9),
    )
    def holds(sizes: list[tuple[int, int]], block_size: int) -> None:
        annotations = annotations_of(sizes)
        options = {"image_size": 128, "pad_multiple": 32, "block_size": block_size}
        blocks = plan_blocks(annotations=annotations, views=VIEWS, **options)
        assert blocks == plan_blocks(annotations=annotations, views=VIEWS, **options)
        assert len({block.name for block in blocks}) == len(blocks)
        keys = Counter((block.view, row) for block in blocks for row in block.rows)
        assert keys == Counter((view.name, row) for view in VIEWS for row in range(len(sizes)))
        for block in blocks:
            assert 1 <= len(block.rows) <= block_size
            for row in block.rows:
                geometry = make_geometry(
                    view_named(block.view),
                    image_hw=sizes[row],
                    image_id=int(annotations.image_ids[row]),
                    image_size=128,
                    pad_multiple=32,
                )
                assert geometry.padded_hw == block.bucket

    holds()


def test_names_and_numbers(annotations_of: Any) -> None:
    annotations = annotations_of([(96, 128), (128, 96), (96, 128), (96, 128)])
    blocks = plan_blocks(
        annotations=annotations,
        views=[view_named("base")],
        image_size=128,
        pad_multiple=32,
        block_size=2,
    )
    assert [(block.name, block.rows) for block in blocks] == [
        ("base-b96x128-000000", (0, 2)),
        ("base-b96x128-000001", (3,)),
        ("base-b128x96-000000", (1,)),
    ]

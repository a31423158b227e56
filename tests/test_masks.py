from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from cachedet.data.masks import NO_MASK, decode_mask, encode_bitmap, encode_segmentation, rle_of
from cachedet.errors import StoreError
from cachedet.structures import MaskCodes


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_bitmaps_come_back(height: int, width: int, share: float, seed: int) -> None:
    bitmap = np.random.default_rng(seed).random((height, width)) < share
    code = encode_bitmap(bitmap)
    assert np.array_equal(decode_mask(code, (height, width)), bitmap)
    rle = rle_of(code, (height, width))
    assert encode_segmentation(rle, (height, width)) == code
    assert int(coco_mask.area({**rle, "counts": code})) == int(bitmap.sum())


def test_polygons_as_pycocotools_draws_them() -> None:
    polygons = [[2.0, 2, 12, 2, 12, 9, 2, 9], [15, 1, 19, 1, 17, 8]]
    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, 10, 20))
    found = decode_mask(encode_segmentation(polygons, (10, 20)), (10, 20))
    assert found.sum() == coco_mask.area(merged) > 60
    assert found[2:9, 2:12].all()
    assert not found[:, 13].any()


def test_polygons_are_cut_at_the_picture_and_scraps_left_out() -> None:
    code = encode_segmentation([[-1e9, -5, 1e9, -5, 1e9, 4, -1e9, 4], [1, 2, 3, 4]], (10, 20))
    assert decode_mask(code, (10, 20)).sum(axis=1).tolist() == [20] * 4 + [0] * 6


def test_uncompressed_rle() -> None:
    code = encode_segmentation({"size": [2, 3], "counts": [1, 2, 3]}, (2, 3))
    assert decode_mask(code, (2, 3)).tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("nothing", [None, []])
def test_no_segmentation(nothing: Any) -> None:
    assert encode_segmentation(nothing, (4, 5)) == NO_MASK
    assert decode_mask(NO_MASK, (4, 5)).tolist() == np.zeros((4, 5)).tolist()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("polygon", "expected polygons or an RLE, got str"),
        ([[1, 2, 3, 4]], "expected a polygon of at least 3 points"),
        ([[1, 2, 3, float("nan"), 5, 6]], "expected a polygon of at least 3 points"),
        ({"size": [3, 2], "counts": [6]}, r"expected an RLE of size \[2, 3\], got \[3, 2\]"),
        ({"size": [2, 3], "counts": [7]}, "run lengths that sum to 6, got 7"),
        ({"size": [2, 3], "counts": [9, -3]}, "whole numbers from 0"),
        ({"size": [2, 3], "counts": 6}, "expected `counts` as a list or a string, got int"),
        ({"size": [2, 3], "counts": "0" * 50}, "does not cover 2 x 3 pixels"),
        ({"size": [2, 3], "counts": "ooooo"}, "does not cover 2 x 3 pixels"),
    ],
)
def test_segmentations_that_are_none(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_segmentation(segmentation, (2, 3))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.binary(min_size=1, max_size=30))
def test_foreign_codes_are_refused(code: bytes) -> None:
    try:
        assert decode_mask(code, (6, 7)).shape == (6, 7)
    except StoreError:
        with pytest.raises(StoreError, match="does not cover its picture of 6 x 7 pixels"):
            decode_mask(code, (6, 7))


def test_codes_one_after_the_other() -> None:
    codes = [b"abc", b"", b"de"]
    joined = MaskCodes.join(codes)
    assert len(joined) == 3
    assert [joined[n] for n in range(3)] == codes
    kept = joined.keep([2, 0, 0, 1])
    assert [kept[n] for n in range(4)] == [b"de", b"abc", b"abc", b""]
    assert len(MaskCodes.join([])) == 0

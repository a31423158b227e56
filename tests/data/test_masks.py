from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from cachedet.data.masks import (
    FARTHEST,
    MOST_RUNS,
    NO_MASK,
    decode_mask,
    empty_code,
    encode_bitmap,
    encode_segmentation,
    is_blank,
    paste_mask,
    paste_masks,
    require_covers,
    rle_of,
)
from cachedet.errors import StoreError
from cachedet.structures import Detections, MaskCodes


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
    bitmap = decode_mask(encode_segmentation(polygons, (10, 20)), (10, 20))
    assert bitmap.sum() == coco_mask.area(merged) > 60
    assert bitmap[2:9, 2:12].all()
    assert not bitmap[:, 13].any()


def test_polygons_are_cut_at_the_image_and_scraps_left_out() -> None:
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
        ([[0, 0, 2, 0, 2, 2], [1, 2, 3, math.nan, 5, 6]], "is no finite number"),
        ([[1, 2, 3, math.inf, 5, 6]], "is no finite number"),
        ([[1, 2, 3, 10**400, 5, 6]], "is no finite number"),
        ([[1, 2, 3, 1e200, 5, 6]], "farther than 1,000,000,000 pixels from the image"),
        ([[0, 0, 2, 0, 2, 2], [0, 0, 2, 0, 2]], "an x and a y for each point, got 5 numbers"),
        ([[0, 0, 2, 0, 2, "2"]], r"lists of numbers .* got \[0, 0, 2, 0, 2, '2'\]"),
        ([[0, 0, 2, 0, 2, True]], "lists of numbers"),
        ([0, 0, 2, 0, 2, 2], "expected a list of polygons, got one alone"),
        ([{"size": [2, 3], "counts": [6]}], "expected polygons as lists of numbers"),
        ([[]], "expected a polygon of at least 3 points"),
        ({}, r"expected an RLE of size \[2, 3\].* got None"),
        (
            {"size": [3, 2], "counts": [6]},
            r"size \[2, 3\].* got \[3, 2\]; they stand as \[width, h",
        ),
        ({"size": [4, 2], "counts": [8]}, r"size \[2, 3\], \[height, width\] .* got \[4, 2\]$"),
        ({"size": [2, 3], "counts": [True, 5]}, "whole numbers from 0"),
        ({"size": [2, 3], "counts": [1.5, 4.5]}, "whole numbers from 0"),
        ({"size": [2, 3], "counts": [10**400]}, r"sum to 6, got 10+\.\.\.0+$"),
        ({"size": [2, 3], "counts": [0] * (MOST_RUNS + 1)}, "at most 4,194,304 run lengths, got"),
        ({"size": [2, 3], "counts": ""}, "does not cover 2 x 3 pixels"),
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


@pytest.mark.parametrize("size_hw", [(10**8, 10**8), (2**20, 2**20), (1, 2**31), (0, 0), (0, 7)])
def test_sizes_that_pycocotools_never_sees(size_hw: tuple[int, int]) -> None:
    """It ends the process on the first of them."""
    height, width = size_hw
    runs = {"size": [height, width], "counts": [height * width]}
    for segmentation in ([[0, 0, 1e8, 0, 1e8, 1e8, 0, 1e8]], runs, {**runs, "counts": "0"}):
        with pytest.raises(ValueError, match="larger than masks may be|are not given"):
            encode_segmentation(segmentation, size_hw)
    with pytest.raises(StoreError, match="does not cover"):
        require_covers(b"0", (2**20, 2**20))


POINT = st.one_of(st.floats(-400, 400), st.integers(-60, 60).map(float), st.integers(-9, 49))


@settings(deadline=None, max_examples=400, derandomize=True)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.lists(st.lists(st.tuples(POINT, POINT), min_size=3, max_size=8), min_size=1, max_size=3),
)
def test_polygons_that_stick_out_are_pycocotools_own(
    height: int, width: int, polygons: list[list[tuple[float, float]]]
) -> None:
    """To the bit: edges are cut at the border, points beyond it do not move."""
    flat = [[float(value) for point in polygon for value in point] for polygon in polygons]
    theirs = coco_mask.merge(coco_mask.frPyObjects(flat, height, width))["counts"]
    assert encode_segmentation(flat, (height, width)) == theirs
    scraps = [*flat, [1.0, 2, 3, 4], [5.0, 6], []]
    assert encode_segmentation(scraps, (height, width)) == theirs


@pytest.mark.parametrize("reach", [2e5, 3e7, 9e8])
def test_an_edge_through_the_image_keeps_its_direction(reach: float) -> None:
    """However far its ends are: beyond a boundary of 4 million pixels we cut before."""
    diamond = [-reach, 50, 50, -reach, reach + 100, 50, 50, reach + 100]
    assert decode_mask(encode_segmentation([diamond], (100, 100)), (100, 100)).all()
    halves = [-reach, -reach, reach, reach, -reach, reach]  # below the diagonal
    bitmap = decode_mask(encode_segmentation([halves], (100, 100)), (100, 100))
    assert abs(int(bitmap.sum()) - 5000) <= 100
    assert bitmap[60, :59].all()
    assert not bitmap[60, 62:].any()
    beside = [reach, 0, 2 * reach, 0, 2 * reach, 50]
    if 2 * reach < FARTHEST:
        assert encode_segmentation([beside], (100, 100)) == empty_code((100, 100))


def test_a_polygon_that_fills_no_memory() -> None:
    zigzag = np.column_stack([np.arange(20_000) % 2 * 900, np.arange(20_000) / 20]).ravel()
    with pytest.raises(ValueError, match=r"polygons are 18,\d+,\d+ pixels long, .* most 4,000,000"):
        encode_segmentation([zigzag.tolist()], (1000, 1000))


def test_blank_masks() -> None:
    assert is_blank(NO_MASK)
    for size_hw in ((1, 1), (7, 9), (3000, 5000)):
        assert is_blank(empty_code(size_hw))
        assert not decode_mask(empty_code(size_hw), size_hw).any()
        bitmap = np.zeros(size_hw, dtype=np.bool_)
        bitmap[-1, -1] = True
        assert not is_blank(encode_bitmap(bitmap))
        assert not is_blank(encode_bitmap(~np.zeros(size_hw, dtype=np.bool_)))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.binary(min_size=1, max_size=30))
def test_foreign_codes_are_refused(code: bytes) -> None:
    try:
        assert decode_mask(code, (6, 7)).shape == (6, 7)
    except StoreError:
        with pytest.raises(StoreError, match="does not cover its image of 6 x 7 pixels"):
            decode_mask(code, (6, 7))


def test_codes_one_after_the_other() -> None:
    codes = [b"abc", b"", b"de"]
    joined = MaskCodes.join(codes)
    assert len(joined) == 3
    assert [joined[n] for n in range(3)] == codes
    kept = joined.keep([2, 0, 0, 1])
    assert [kept[n] for n in range(4)] == [b"de", b"abc", b"abc", b""]
    assert len(MaskCodes.join([])) == 0


def test_a_full_mask_fills_its_box() -> None:
    bitmap = paste_mask(torch.ones(28, 28), torch.tensor([4.0, 2.0, 14.0, 9.0]), (12, 20))
    expected = np.zeros((12, 20), dtype=bool)
    expected[2:9, 4:14] = True
    assert np.array_equal(bitmap, expected)


def test_halves_and_cells_by_hand() -> None:
    cells = torch.zeros(2, 2)
    cells[:, 0] = 1.0  # the left half of the object
    bitmap = paste_mask(cells, torch.tensor([0.0, 0.0, 8.0, 8.0]), (8, 10))
    assert bitmap[2:6, :4].all()  # beyond the outer centres it fades, most of all at the corners
    assert not bitmap[:, 4:].any()


@pytest.mark.parametrize(
    "box", [[-6.0, -3, 7, 9], [15.0, 5, 40, 30], [30.0, 3, 35, 8], [3.0, 3, 3, 9], [-9, -9, -2, -2]]
)
def test_boxes_beyond_the_image(box: list[float]) -> None:
    bitmap = paste_mask(torch.ones(4, 4), torch.tensor(box), (12, 20))
    assert bitmap.shape == (12, 20)
    x1, y1, x2, y2 = box
    inside = max(0, min(x2, 20) - max(x1, 0)) * max(0, min(y2, 12) - max(y1, 0))
    assert bitmap.sum() == pytest.approx(inside, abs=0.5 * (20 + 12))
    assert (inside == 0) == (not bitmap.any())


def test_a_smooth_shape_survives_the_round_trip() -> None:
    """A disc cut into 28 x 28 cells and pasted back overlaps itself by 97 %."""
    y, x = np.mgrid[:200, :300]
    disc = (x - 120.3) ** 2 + (y - 90.6) ** 2 < 60**2
    box = torch.tensor([60.3, 30.6, 180.3, 150.6])
    cells = torch.nn.functional.adaptive_avg_pool2d(
        torch.from_numpy(disc[31:151, 60:180]).float()[None], 28
    )[0]
    bitmap = paste_mask(cells, box, (200, 300))
    assert (bitmap & disc).sum() / (bitmap | disc).sum() > 0.97


def test_codes_of_all_detections() -> None:
    detections = Detections(
        image_id=1,
        boxes=torch.tensor([[4.0, 2, 14, 9], [0.0, 0, 3, 3]]),
        scores=torch.ones(2),
        labels=torch.zeros(2, dtype=torch.int64),
        masks=torch.stack([torch.ones(4, 4), torch.zeros(4, 4)]),
    )
    areas = [int(decode_mask(code, (12, 20)).sum()) for code in paste_masks(detections, (12, 20))]
    assert areas == [70, 0]
    plain = Detections(
        image_id=1, boxes=detections.boxes, scores=detections.scores, labels=detections.labels
    )
    assert paste_masks(plain, (12, 20)) == []

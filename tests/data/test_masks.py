from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from cachedet.data.masks import (
    NO_MASK,
    decode_mask,
    encode_bitmap,
    encode_segmentation,
    paste_mask,
    paste_masks,
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

from __future__ import annotations

import numpy as np
import pytest
import torch

from cachedet.data.masks import decode_mask, paste_mask, paste_masks
from cachedet.structures import Detections


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
def test_boxes_beyond_the_picture(box: list[float]) -> None:
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
    found = Detections(
        image_id=1,
        boxes=torch.tensor([[4.0, 2, 14, 9], [0.0, 0, 3, 3]]),
        scores=torch.ones(2),
        labels=torch.zeros(2, dtype=torch.int64),
        masks=torch.stack([torch.ones(4, 4), torch.zeros(4, 4)]),
    )
    areas = [int(decode_mask(code, (12, 20)).sum()) for code in paste_masks(found, (12, 20))]
    assert areas == [70, 0]
    plain = Detections(image_id=1, boxes=found.boxes, scores=found.scores, labels=found.labels)
    assert paste_masks(plain, (12, 20)) == []

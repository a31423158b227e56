"""What a mask head learns from views that are windows: masks of the image, RoIs of the view."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.ops import roi_align

from cachedet.data.geometry import Geometry
from cachedet.data.masks import decode_mask, encode_bitmap, encode_segmentation
from cachedet.data.views import make_geometry, make_targets, view_named
from cachedet.detector.mask_head import crop_masks
from cachedet.structures import MaskCodes

IMAGE_HW = (120, 200)
BOXES = [[20, 10, 120, 100, 0, 0], [90, 30, 190, 110, 1, 0], [60, 50, 140, 70, 2, 0]]


def ellipse(box: list[float]) -> np.ndarray:
    y, x = np.mgrid[: IMAGE_HW[0], : IMAGE_HW[1]] + 0.5
    x1, y1, x2, y2 = box[:4]
    dx, dy = (x - (x1 + x2) / 2) / (x2 - x1) * 2, (y - (y1 + y2) / 2) / (y2 - y1) * 2
    half = (dx**2 + dy**2 < 1) & (x < 0.7 * x2 + 0.3 * x1)  # not its own mirror image
    return np.asarray(half)


def sticking_out(box: list[float]) -> list[float]:
    """A triangle with a corner above the image and one right of it."""
    x1, y1, x2, y2 = box[:4]
    return [x1, y2, (x1 + x2) / 2, y1 - 150.5, x2 + 220.25, y2 + 40]


def rasterised(bitmap: np.ndarray, geometry: Geometry) -> torch.Tensor:
    """The bitmap as pixels of the view, by enlarging, cutting and mirroring images."""
    (tall, wide), (top, left), (height, width) = (
        geometry.scaled_hw,
        geometry.offset_yx,
        geometry.valid_hw,
    )
    whole = Image.fromarray(bitmap.astype(np.uint8) * 255).resize((wide, tall), Image.NEAREST)
    cut = np.asarray(whole)[top : top + height, left : left + width]
    cut = cut[:, ::-1] if geometry.flip else cut
    return torch.from_numpy(cut / 255).float()


@pytest.mark.parametrize(
    ("name", "image_id"),
    [("base", 7), ("hflip", 7), ("scale-1.5", 7), ("crop-k0", 7), ("crop-k1", 27),
     ("jitter-1.2-3-s0", 7), ("jitter-1.2-3-s3", 7), ("jitter-1.2-3-s1", 17)],
)  # fmt: skip
@pytest.mark.parametrize("draw", ["ellipse", "polygon"])
def test_masks_cropped_are_masks_rasterised(
    annotations_of: Any, name: str, image_id: int, draw: str
) -> None:
    """Ellipses, and polygons that stick out of the image, as pycocotools draws them."""
    if draw == "ellipse":
        bitmaps = [ellipse(box) for box in BOXES]
        codes = [encode_bitmap(bitmap) for bitmap in bitmaps]
    else:
        polygons = [sticking_out(box) for box in BOXES]
        theirs = [coco_mask.merge(coco_mask.frPyObjects([p], *IMAGE_HW)) for p in polygons]
        bitmaps = [decode_mask(runs["counts"], IMAGE_HW) > 0 for runs in theirs]
        codes = [encode_segmentation([polygon], IMAGE_HW) for polygon in polygons]
    masks = MaskCodes.join(codes)
    ground_truth = dataclasses.replace(annotations_of([IMAGE_HW], [BOXES]), masks=masks)
    geometry = make_geometry(
        view_named(name), image_hw=IMAGE_HW, image_id=image_id, image_size=256, pad_multiple=32
    )
    targets = make_targets(ground_truth, 0, geometry)
    assert len(targets.boxes) >= 2
    assert targets.masks is not None
    kept = [masks[n] for n in range(3)]
    of_box = [kept.index(code) for code in targets.masks.codes]
    height, width = geometry.valid_hw
    rois = targets.boxes + torch.tensor([-4.0, 3.0, 5.0, -2.0])
    rois = rois.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
    found = crop_masks(targets, rois, torch.arange(len(rois)), side=14)
    for n, box in enumerate(rois):
        view = rasterised(bitmaps[of_box[n]], geometry)
        places = torch.cat([torch.zeros(1), box])[None]
        cells = roi_align(view[None, None], places, 14, sampling_ratio=-1, aligned=True)[0, 0]
        sure = (cells - 0.5).abs() > 0.2  # at the rim the two grids of pixels may differ
        assert sure.float().mean() > 0.6
        assert torch.equal(found[n][sure], (cells >= 0.5).float()[sure])


def test_the_two_directions_are_told_apart(annotations_of: Any) -> None:
    """The half ellipses are no mirror images of themselves: a wrong flip would be seen."""
    left, right = ellipse(BOXES[0]), ellipse(BOXES[0])[:, ::-1]
    assert (left != right).mean() > 0.2
    masks = MaskCodes.join([encode_bitmap(left)])
    ground_truth = dataclasses.replace(annotations_of([IMAGE_HW], [BOXES[:1]]), masks=masks)
    cells = []
    for name in ("base", "hflip"):
        geometry = make_geometry(
            view_named(name), image_hw=IMAGE_HW, image_id=7, image_size=200, pad_multiple=8
        )
        targets = make_targets(ground_truth, 0, geometry)
        cells.append(crop_masks(targets, targets.boxes, torch.zeros(1).long(), side=14))
    assert (cells[0] != cells[1]).float().mean() > 0.1
    torch.testing.assert_close(cells[0], cells[1].flip(2))

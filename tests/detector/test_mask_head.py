from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from cachedet.data.masks import NO_MASK, empty_code, encode_bitmap
from cachedet.detector.layers import LayerStyle
from cachedet.detector.mask_head import MaskHead, crop_masks
from cachedet.structures import TargetMasks, Targets

MASKED = {"mask_head": {"resolution": 7, "num_convs": 1, "channels": 8}}


def bitmaps_of(boxes: torch.Tensor, size_hw: tuple[int, int], scale: float) -> list[np.ndarray]:
    """Ellipses that fill each box, in an image `scale` times the view."""
    y, x = np.mgrid[: int(size_hw[0] * scale), : int(size_hw[1] * scale)] + 0.5
    bitmaps = []
    for x1, y1, x2, y2 in (boxes * scale).tolist():
        dx, dy = (x - (x1 + x2) / 2) / (x2 - x1) * 2, (y - (y1 + y2) / 2) / (y2 - y1) * 2
        bitmaps.append(dx**2 + dy**2 < 1)
    return bitmaps


def with_masks(targets: Targets, *, flip: bool = False, scale: float = 2.0) -> Targets:
    bitmaps = bitmaps_of(targets.boxes, targets.size_hw, scale)
    codes = tuple(encode_bitmap(b[:, ::-1] if flip else b) for b in bitmaps)
    height, width = targets.size_hw
    image_hw = (int(height * scale), int(width * scale))
    scale_xy, origin_xy = (
        ((-scale, scale), (width * scale, 0.0)) if flip else ((scale,) * 2, (0, 0))
    )
    masks = TargetMasks(codes=codes, image_hw=image_hw, scale_xy=scale_xy, origin_xy=origin_xy)
    return dataclasses.replace(targets, masks=masks)


def test_head_equals_torchvisions_on_the_same_weights() -> None:
    style = LayerStyle(norm="none", activation="relu")
    ours = MaskHead(in_channels=5, num_classes=3, num_convs=2, channels=6, style=style)
    heads, predictor = MaskRCNNHeads(5, (6, 6), 1), MaskRCNNPredictor(6, 6, 3)
    for place in range(2):
        heads[place][0].load_state_dict(ours.tower.convs[place].state_dict())
    predictor.conv5_mask.load_state_dict(ours.enlarge.state_dict())
    predictor.mask_fcn_logits.load_state_dict(ours.logits.state_dict())
    cells = torch.randn(4, 5, 14, 14)
    torch.testing.assert_close(ours(cells), predictor(heads(cells)), rtol=1e-5, atol=1e-6)


def test_a_mask_in_its_own_box_is_the_ellipse(detectors: Any) -> None:
    targets = with_masks(detectors.targets([[10.0, 8, 50, 40]]))
    cells = crop_masks(targets, targets.boxes, torch.tensor([0]), side=28)
    y, x = (np.mgrid[:28, :28] + 0.5) / 14 - 1
    wanted = torch.from_numpy((x**2 + y**2 < 1).astype(np.float32))
    assert cells.shape == (1, 28, 28)
    assert (cells[0] != wanted).float().mean() < 0.03


def test_views_flipped_and_scaled_crop_the_same_object(detectors: Any) -> None:
    """The mask lies in the image, the boxes in the view: the cells must not notice."""
    plain = detectors.targets([[10.0, 8, 50, 40], [40.0, 20, 90, 60]])
    boxes = plain.boxes[[1, 0, 1]] + torch.tensor([[2.0, -3.0, 4.0, 1.0]])
    matched = torch.tensor([1, 0, 1])
    expected = crop_masks(with_masks(plain), boxes, matched, side=14)
    assert 0.2 < expected.mean() < 0.9
    for flip, scale in ((True, 2.0), (False, 3.0), (True, 1.5)):
        found = crop_masks(with_masks(plain, flip=flip, scale=scale), boxes, matched, side=14)
        assert (found != expected).float().mean() < 0.03, (flip, scale)


def test_no_rois_and_no_masks(detectors: Any) -> None:
    targets = detectors.targets([[10.0, 8, 50, 40]])
    none = torch.zeros(0, dtype=torch.int64)
    assert crop_masks(targets, torch.zeros(0, 4), none, side=14).shape == (0, 14, 14)


@pytest.mark.parametrize("kind", ["faster_rcnn", "cascade_rcnn"])
@pytest.mark.parametrize("without", [NO_MASK, empty_code((64, 96))])
def test_loss_by_hand(detectors: Any, kind: str, without: bytes) -> None:
    """Three RoIs of two images; one box has no mask, or a blank one, and teaches nothing."""
    detector = detectors.detector(kind, **MASKED).eval()
    branch = detector.mask_branch
    torch.nn.init.normal_(branch.head.logits.weight, std=0.5)
    first = with_masks(detectors.targets([[10.0, 8, 50, 40], [40.0, 20, 90, 60]], labels=[2, 0]))
    codes = (first.masks.codes[0], without)
    first = dataclasses.replace(first, masks=dataclasses.replace(first.masks, codes=codes))
    second = with_masks(detectors.targets([[5.0, 5, 60, 50]], labels=[1]), flip=True)
    boxes = torch.tensor([[4.0, 6, 55, 48], [41.0, 22, 88, 60], [12.0, 8, 50, 42.0]])
    image, matched = torch.tensor([1, 0, 0]), torch.tensor([0, 1, 0])
    pyramid = detector.neck(detectors.features())
    found = branch.loss(pyramid, [first, second], boxes=boxes, image=image, matched=matched)
    logits = branch.head(branch.roi_align(pyramid, boxes, image))
    wanted = [
        (logits[0, 1], crop_masks(second, boxes[:1], matched[:1], side=14)[0]),
        (logits[2, 2], crop_masks(first, boxes[2:], matched[2:], side=14)[0]),
    ]
    expected = torch.stack([F.binary_cross_entropy_with_logits(a, b) for a, b in wanted]).mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["faster_rcnn", "cascade_rcnn"])
def test_detector_with_masks(detectors: Any, kind: str) -> None:
    detector = detectors.detector(kind, **MASKED, postprocess={"score_threshold": 0.0})
    features, targets = detectors.batch()
    losses = detector(features, [with_masks(own) for own in targets])
    assert tuple(losses) == ("rpn_class", "rpn_box", "class", "box", "mask")
    assert losses["mask"].item() > 0.3
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None for p in detector.parameters())
    nothing = detector(features, targets)["mask"]  # the same images, without masks
    assert nothing.item() == 0.0
    found = detector.eval().detect(features, sizes_hw=[(64, 96)] * 2, image_ids=[1, 2])
    for own in found:
        assert own.masks.shape == (len(own), 14, 14)
        assert bool(((own.masks >= 0) & (own.masks <= 1)).all())
    none = detector.detect(features, sizes_hw=[(0, 0)] * 2, image_ids=[1, 2])
    assert [len(own) for own in none] == [0, 0]


def test_masks_are_learnt_by_heart(detectors: Any) -> None:
    detector = detectors.detector("faster_rcnn", norm="group", **MASKED)
    features = detectors.features()
    targets = [
        with_masks(detectors.targets([[10.0, 8, 50, 40], [52.0, 20, 90, 60]], labels=[2, 0])),
        with_masks(detectors.targets([[15.0, 5, 60, 50]], labels=[1])),
    ]
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        torch.stack(list(detector(features, targets).values())).sum().backward()
        optimizer.step()
    pyramid = detector.eval().neck(features)
    boxes = torch.cat([own.boxes for own in targets])
    image = torch.tensor([0, 0, 1])
    labels = torch.cat([own.labels for own in targets])
    logits = detector.mask_branch.head(detector.mask_branch.roi_align(pyramid, boxes, image))
    cells = logits[torch.arange(3), labels] > 0
    wanted = torch.cat(
        [crop_masks(own, own.boxes, torch.arange(len(own.boxes)), side=14) for own in targets]
    )
    assert (cells == wanted.bool()).float().mean() > 0.95

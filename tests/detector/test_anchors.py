from __future__ import annotations

import torch
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from cachedet.detector.anchors import (
    BACKGROUND,
    IGNORED,
    AnchorGenerator,
    ignore_crowd,
    match_anchors,
)


def test_anchors_by_hand() -> None:
    generator = AnchorGenerator(
        strides=(8, 14), size_factor=2.0, scales_per_octave=1, aspect_ratios=(1.0, 4.0)
    )
    anchors = generator({"P3": torch.zeros(1, 1, 1, 2), "P4": torch.zeros(1, 1, 1, 1)})
    expected = [
        [-4.0, -4.0, 12.0, 12.0],
        [0.0, -12.0, 8.0, 20.0],  # four times as high as wide, the same area
        [4.0, -4.0, 20.0, 12.0],
        [8.0, -12.0, 16.0, 20.0],
        [-7.0, -7.0, 21.0, 21.0],
        [0.0, -21.0, 14.0, 35.0],
    ]
    torch.testing.assert_close(anchors, torch.tensor(expected))


def test_paper_anchors() -> None:
    generator = AnchorGenerator(strides=(8,))
    assert generator.num_anchors == 9
    anchors = generator({"P3": torch.zeros(1, 1, 2, 3)})
    sizes = anchors[:, 2:] - anchors[:, :2]
    assert len(anchors) == 54
    areas = sizes.prod(dim=1)[:9].sqrt()
    torch.testing.assert_close(
        areas[::3], torch.tensor([32.0, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)])
    )
    torch.testing.assert_close((sizes[:3, 1] / sizes[:3, 0]), torch.tensor([0.5, 1.0, 2.0]))


def test_few_shapes_are_kept() -> None:
    generator = AnchorGenerator(strides=(8,))
    first = generator({"P3": torch.zeros(1, 1, 2, 3)})
    assert generator({"P3": torch.zeros(4, 7, 2, 3)}) is first
    for width in range(1, 80):
        generator({"P3": torch.zeros(1, 1, 1, width)})
    assert len(generator._cache) <= 64


def random_case(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    anchors = AnchorGenerator(strides=(16,))({"P4": torch.zeros(1, 1, 6, 6)})
    corners = torch.rand(7, 2, generator=generator) * 80
    sides = 8 + torch.rand(7, 2, generator=generator) * 60
    return anchors, torch.cat([corners, corners + sides], dim=1)


def test_matching_against_torchvision_where_no_box_fights_for_an_anchor() -> None:
    """torchvision keeps a forced anchor's own best box; the rest must agree exactly."""
    for seed in range(10):
        anchors, boxes = random_case(seed)
        iou = box_iou(boxes, anchors)
        theirs = Matcher(0.5, 0.4, allow_low_quality_matches=True)(iou)
        ours = match_anchors(anchors, boxes, foreground_iou=0.5, background_iou=0.4)
        forced = (iou == iou.amax(dim=1, keepdim=True)).any(dim=0)
        assert torch.equal(ours[~forced], theirs[~forced])
        assert bool((ours[forced] >= 0).all())


def test_no_box_goes_untaught() -> None:
    for seed in range(10):
        anchors, boxes = random_case(seed)
        matched = match_anchors(anchors, boxes)
        iou = box_iou(boxes, anchors)
        for number in range(len(boxes)):
            best = (iou[number] == iou[number].max()).nonzero().squeeze(1)
            fights = iou[:, best] == iou.amax(dim=1)[:, None]
            if fights.sum() == len(best):  # nobody else has the same best anchor
                assert bool((matched[best] == number).all())


def test_hand_table() -> None:
    anchors = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4.4], [50, 50, 60, 60], [1, 0, 10, 10]]
    )
    boxes = torch.tensor([[0.0, 0, 10, 10]])
    matched = match_anchors(anchors, boxes, foreground_iou=0.6, background_iou=0.45)
    assert matched.tolist() == [0, IGNORED, BACKGROUND, BACKGROUND, 0]
    assert match_anchors(anchors, boxes[:0]).tolist() == [BACKGROUND] * 5


def test_crowd_is_ignored_but_positives_stay() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [26, 0, 36, 10]])
    matched = torch.tensor([0, BACKGROUND, BACKGROUND])
    crowd = torch.tensor([[0.0, 0, 30, 10]])
    assert ignore_crowd(matched, anchors, crowd).tolist() == [0, IGNORED, BACKGROUND]
    assert ignore_crowd(matched, anchors, crowd[:0]).tolist() == matched.tolist()

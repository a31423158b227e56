from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from cachedet.detector.boxes import (
    MAX_LOG_RATIO,
    Postprocess,
    apply_deltas,
    clip_boxes,
    clip_to_sizes,
    covered_fraction,
    encode_deltas,
    pairwise_iou,
)


def random_boxes(count: int) -> torch.Tensor:
    corners = torch.rand(count, 2, dtype=torch.float64) * 300
    return torch.cat([corners, corners + 1 + torch.rand(count, 2, dtype=torch.float64) * 200], 1)


def test_deltas_equal_torchvision() -> None:
    boxes, anchors = random_boxes(50), random_boxes(50)
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    deltas = encode_deltas(boxes, anchors)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, anchors), rtol=1e-9, atol=1e-9)
    decoded = coder.decode_single(deltas, anchors)
    torch.testing.assert_close(apply_deltas(deltas, anchors), decoded, rtol=1e-9, atol=1e-9)


def test_deltas_by_hand() -> None:
    anchor = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    box = torch.tensor([[5.0, 0.0, 25.0, 20.0]])
    expected = torch.tensor([[1.0, 0.0, math.log(2), 0.0]])
    torch.testing.assert_close(encode_deltas(box, anchor), expected)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    st.lists(st.floats(0, 500), min_size=4, max_size=4),
    st.lists(st.floats(4, 60), min_size=4, max_size=4),
)
def test_deltas_are_undone(corners: list[float], sides: list[float]) -> None:
    x, y, ax, ay = corners
    w, h, aw, ah = sides
    box = torch.tensor([[x, y, x + w, y + h]], dtype=torch.float64)
    anchor = torch.tensor([[ax, ay, ax + aw, ay + ah]], dtype=torch.float64)
    back = apply_deltas(encode_deltas(box, anchor), anchor)
    torch.testing.assert_close(back, box, rtol=1e-9, atol=1e-7)


def test_huge_deltas_stay_finite() -> None:
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    box = apply_deltas(torch.tensor([[0.0, 0.0, 900.0, 0.0]]), anchor)
    torch.testing.assert_close(box[0, 2] - box[0, 0], torch.tensor(1000.0))
    assert math.exp(MAX_LOG_RATIO) == pytest.approx(62.5)


def test_clip_and_cover_by_hand() -> None:
    boxes = torch.tensor([[-5.0, 2.0, 30.0, 50.0]])
    torch.testing.assert_close(clip_boxes(boxes, (40, 20)), torch.tensor([[0.0, 2.0, 20.0, 40.0]]))
    covered = covered_fraction(
        torch.tensor([[0.0, 0.0, 10.0, 10.0]]),
        torch.tensor([[5.0, 0.0, 100.0, 100.0], [20.0, 20.0, 30.0, 30.0]]),
    )
    torch.testing.assert_close(covered, torch.tensor([[0.5, 0.0]]))


def test_iou_equals_torchvision_and_takes_batches() -> None:
    boxes, others = random_boxes(12), random_boxes(20)
    torch.testing.assert_close(pairwise_iou(boxes, others), box_iou(boxes, others))
    batched = pairwise_iou(boxes.view(3, 4, 4), others[None])
    torch.testing.assert_close(batched, box_iou(boxes, others).view(3, 4, 20))
    nothing = torch.zeros(1, 4, dtype=torch.float64)
    assert pairwise_iou(nothing, nothing).tolist() == [[0.0]]


def test_each_image_clips_its_own_boxes() -> None:
    boxes = torch.tensor([[-5.0, 2.0, 30.0, 50.0]]).expand(2, 1, 4)
    clipped = clip_to_sizes(boxes, [(40, 20), (10, 100)])
    assert clipped.tolist() == [[[0.0, 2.0, 20.0, 40.0]], [[0.0, 2.0, 30.0, 10.0]]]


SELECT = Postprocess(score_threshold=0.2, pre_nms=10, nms_iou=0.5, max_detections=3)
BOXES = torch.tensor(
    [[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 70, 70], [0, 0, 0, 5], [95, 0, 120, 20]]
)


def test_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.3], [0.8, 0.1], [0.2, 0.7], [0.99, 0.0], [0.5, 0.4]])
    found = SELECT(scores, BOXES, size_hw=(60, 100), image_id=4)
    # 0.8 is suppressed, 0.2 is at the threshold, 0.99 has no area; 0.4 and 0.3 are one too many
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7, 0.5]))
    assert found.labels.tolist() == [0, 1, 0]
    assert found.boxes.tolist() == [[0, 0, 10, 10], [50, 50, 70, 60], [95, 0, 100, 20]]
    assert found.image_id == 4


def test_every_class_may_have_its_own_box() -> None:
    scores = torch.tensor([[0.9, 0.8]])
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 40, 40]]])
    found = SELECT(scores, boxes, size_hw=(60, 100), image_id=4)
    assert found.labels.tolist() == [0, 1]
    assert found.boxes.tolist() == [[0, 0, 10, 10], [20, 20, 40, 40]]


def test_only_the_best_candidates_are_suppressed_against_each_other() -> None:
    select = Postprocess(score_threshold=0.0, pre_nms=1, nms_iou=0.5, max_detections=3)
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.0, 0.7], [0.0, 0.0], [0.0, 0.0]])
    found = select(scores, BOXES, size_hw=(60, 100), image_id=4)
    assert found.scores.tolist() == [scores[0, 0].item()]


def test_nothing_found_and_nothing_offered() -> None:
    assert len(SELECT(torch.zeros(5, 2), BOXES, size_hw=(60, 100), image_id=4)) == 0
    assert len(SELECT(torch.zeros(0, 2), BOXES[:0], size_hw=(60, 100), image_id=4)) == 0

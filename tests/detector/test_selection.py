from __future__ import annotations

import torch

from cachedet.detector.boxes import Selection

SELECT = Selection(score_threshold=0.2, pre_nms=10, nms_iou=0.5, max_detections=3)
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
    select = Selection(score_threshold=0.0, pre_nms=1, nms_iou=0.5, max_detections=3)
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.0, 0.7], [0.0, 0.0], [0.0, 0.0]])
    found = select(scores, BOXES, size_hw=(60, 100), image_id=4)
    assert found.scores.tolist() == [scores[0, 0].item()]


def test_nothing_found_and_nothing_offered() -> None:
    assert len(SELECT(torch.zeros(5, 2), BOXES, size_hw=(60, 100), image_id=4)) == 0
    assert len(SELECT(torch.zeros(0, 2), BOXES[:0], size_hw=(60, 100), image_id=4)) == 0

from __future__ import annotations

from typing import Any

import pytest
import torch

from cachedet.detector.boxes import Postprocess
from cachedet.detector.fixed_rows import Candidates, FixedDetections, rank, select, suppress
from cachedet.detector.protocol import exportable
from cachedet.errors import DetectorError
from cachedet.structures import Detections

MASKS = {"mask_head": {"resolution": 7, "num_convs": 1, "channels": 8}}
SIZES = [(64, 96), (57, 80)]


def stir(detector: torch.nn.Module, std: float = 0.5) -> Any:
    """Predictors that say something, as after training."""
    torch.manual_seed(11)
    for name, parameter in detector.named_parameters():
        if any(part in name for part in ("class_logits", "objectness", "box_deltas")):
            torch.nn.init.normal_(parameter, std=std)
    return detector.eval()


def compare(rows: FixedDetections, lists: list[Detections]) -> None:
    """Bit for bit the same detections, and nothing behind them."""
    for n, found in enumerate(lists):
        count = len(found)
        assert torch.equal(rows.boxes[n, :count], found.boxes)
        assert torch.equal(rows.scores[n, :count], found.scores)
        assert torch.equal(rows.labels[n, :count], found.labels)
        assert not rows.scores[n, count:].any()
        assert not rows.boxes[n, count:].any()
        if found.masks is not None:
            assert rows.masks is not None
            assert torch.equal(rows.masks[n, :count], found.masks)


@pytest.mark.parametrize("neck", ["fpn", "nasfpn"])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("retinanet", {}),
        ("faster_rcnn", MASKS),
        ("faster_rcnn", {"class_agnostic": True}),
        ("cascade_rcnn", MASKS),
    ],
)
def test_rows_are_what_detect_finds(
    detectors: Any, kind: str, neck: str, changes: dict[str, Any]
) -> None:
    detector = stir(detectors.detector(kind, neck, **changes))
    features = detectors.features()
    found = detector.detect(features, sizes_hw=SIZES, image_ids=[1, 2])
    assert min(map(len, found)) > 3
    compare(detector.detect_rows(features, torch.tensor(SIZES)), found)


def test_candidates_become_the_detections(detectors: Any) -> None:
    detector = stir(detectors.detector("faster_rcnn"))
    features, sizes = detectors.features(), torch.tensor(SIZES)
    candidates = detector.candidates(features, sizes)
    rows = select(detector.postprocess, candidates)
    compare(rows, detector.detect(features, sizes_hw=SIZES, image_ids=[1, 2]))
    assert candidates.boxes.shape == (2, 30, 3, 4)  # one box a class
    limits = torch.tensor([[96, 64, 96, 64], [80, 57, 80, 57]])
    assert bool((candidates.boxes <= limits[:, None, None]).all())
    assert bool((candidates.boxes >= 0).all())


def test_few_candidates_leave_rows_empty() -> None:
    postprocess = Postprocess(score_threshold=0.3, pre_nms=50, nms_iou=0.5, max_detections=4)
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [5, 5, 5, 20], [20, 20, 30, 30]]])
    scores = torch.tensor([[[0.9, 0.1], [0.8, 0.7], [0.9, 0.9], [0.2, 0.1]]])
    rows = select(postprocess, Candidates(boxes=boxes, scores=scores))
    assert rows.labels.tolist() == [[0, 1, 0, 0]]
    assert rows.scores[0].tolist() == pytest.approx([0.9, 0.7, 0.0, 0.0])
    assert rows.boxes[0, 1].tolist() == [0, 0, 10, 9]


def test_groups_do_not_suppress_each_other() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(1, 3, 4)
    scores = torch.tensor([[0.5, -2.0, 0.7]])
    groups = torch.tensor([[0, 1, 0]])
    assert suppress(boxes, scores, groups, 2, 0.5).tolist() == [[False, True, True]]
    best = rank(boxes, scores, groups, num_groups=2, iou=0.5, most=5)
    assert best.scores[0, :2].tolist() == pytest.approx([0.7, -2.0])
    assert best.rows[0, :2].tolist() == [2, 1]
    assert bool((best.scores[0, 2:] == -torch.inf).all())


def test_a_detector_without_rows_is_named() -> None:
    with pytest.raises(DetectorError, match="Linear has no method candidates and no detect_rows"):
        exportable(torch.nn.Linear(1, 1))

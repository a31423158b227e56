from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from cachedet.detector.boxes import apply_deltas, clip_boxes, encode_deltas
from cachedet.detector.matching import BACKGROUND, IGNORED, pad_truth
from cachedet.detector.rcnn import RCNN, RoIs, Stage, paper_stages


def make(detectors: Any, kind: str = "cascade_rcnn", **changes: Any) -> RCNN:
    detector = detectors.detector(kind, **changes)
    assert isinstance(detector, RCNN)
    return detector


def stir(detector: RCNN, std: float = 0.5) -> None:
    """Predictors that say something, as after training."""
    for head in detector.heads:
        torch.nn.init.normal_(head.class_logits.weight, std=std)  # type: ignore[union-attr]
        torch.nn.init.normal_(head.box_deltas.weight, std=std)  # type: ignore[union-attr]
    torch.nn.init.normal_(detector.rpn.head.objectness.weight, std=std)


def test_paper_stages() -> None:
    stages = paper_stages((0.5, 0.7, 0.8))
    assert [stage.foreground_iou for stage in stages] == [0.5, 0.7, 0.8]
    assert [stage.delta_weights for stage in stages] == [
        (10.0, 10.0, 5.0, 5.0),
        (20.0, 20.0, 10.0, 10.0),
        (30.0, 30.0, 15.0, 15.0),
    ]


def test_losses_by_plain_loops_in_float64(detectors: Any) -> None:
    detector = make(detectors, "faster_rcnn")
    truth = pad_truth(
        [
            detectors.targets([[4, 4, 40, 44], [50, 10, 90, 60]], labels=[2, 0]),
            detectors.targets([[10, 10, 30, 30]], labels=[1]),
        ]
    )
    boxes = torch.rand(2, 6, 4, dtype=torch.float64) * 20
    boxes[..., 2:] += 30
    rois = RoIs(
        boxes=boxes,
        is_valid=torch.tensor([[True] * 6, [True] * 4 + [False] * 2]),
        matched=torch.tensor(
            [[0, 1, BACKGROUND, IGNORED, 1, BACKGROUND], [0, BACKGROUND, 0, 0, 0, 0]]
        ),
    )
    logits = torch.randn(10, 4, dtype=torch.float64)
    deltas = torch.randn(10, 3, 4, dtype=torch.float64) * 3
    stage = Stage(foreground_iou=0.5, delta_weights=(10.0, 10.0, 5.0, 5.0))
    class_sum, counted, box_sum, positives, place = 0.0, 0, 0.0, 0, 0
    for n in range(2):
        for s in range(6):
            if not rois.is_valid[n, s]:
                continue
            match = int(rois.matched[n, s])
            own, place = logits[place], place + 1
            if match == IGNORED:
                continue
            label = 3 if match == BACKGROUND else int(truth.labels[n, match])
            class_sum += math.log(sum(math.exp(v) for v in own.tolist())) - float(own[label])
            counted += 1
            if match >= 0:
                positives += 1
                wanted = encode_deltas(truth.boxes[n, match][None].double(), boxes[n, s][None])[0]
                weights = (10.0, 10.0, 5.0, 5.0)
                for c in range(4):
                    error = abs(float(deltas[place - 1, label, c]) - float(wanted[c]) * weights[c])
                    box_sum += error**2 / 2 if error <= 1 else error - 0.5
    assert (counted, positives) == (9, 6)
    found = detector._class_loss(logits, rois, truth)
    assert found.item() == pytest.approx(class_sum / counted, rel=1e-12)
    found = detector._box_loss(deltas, rois, truth, stage)
    assert found.item() == pytest.approx(box_sum / (4 * positives), rel=1e-6)


def test_gradients_of_the_box_loss_by_finite_differences(detectors: Any) -> None:
    detector = make(detectors, "faster_rcnn")
    truth = pad_truth([detectors.targets([[4, 4, 40, 44]], labels=[1])])
    rois = RoIs(
        boxes=torch.tensor([[[2.0, 5.0, 38.0, 40.0], [0.0, 0.0, 9.0, 9.0]]], dtype=torch.float64),
        is_valid=torch.tensor([[True, True]]),
        matched=torch.tensor([[0, BACKGROUND]]),
    )
    stage = paper_stages((0.5,))[0]
    deltas = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: detector._box_loss(x, rois, truth, stage), (deltas,))
    assert torch.autograd.gradcheck(lambda x: detector._class_loss(x, rois, truth), (logits,))


def test_later_stages_label_the_moved_boxes_and_sample_nothing(
    detectors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = make(detectors)
    stir(detector, std=0.05)
    seen: list[RoIs] = []
    plain = RCNN._class_loss

    def spy(self: RCNN, logits: Tensor, rois: RoIs, truth: Any) -> Tensor:
        seen.append(rois)
        return plain(self, logits, rois, truth)

    monkeypatch.setattr(RCNN, "_class_loss", spy)
    features, targets = detectors.batch()
    detector(features, targets)
    assert len(seen) == 3
    boxes = targets[0].boxes[:2]
    for place, iou in ((1, 0.7), (2, 0.8)):
        assert torch.equal(seen[place].is_valid, seen[0].is_valid)
        assert not torch.equal(seen[place].boxes, seen[place - 1].boxes)
        best = box_iou(seen[place].boxes[0], boxes).amax(dim=1)
        assert torch.equal(seen[place].matched[0] >= 0, best >= iou)


def test_stages_teach_only_themselves_and_the_pyramid(detectors: Any) -> None:
    """Boxes enter the next stage without gradient; every stage counts one third."""
    detector = make(detectors)
    stir(detector, std=0.05)
    features, targets = detectors.batch()
    losses = detector(features, targets)
    losses["class"].backward(retain_graph=True)
    for head in detector.heads:
        assert head.box_deltas.weight.grad is None  # type: ignore[union-attr]
        assert bool(head.class_logits.weight.grad.any())  # type: ignore[union-attr]
    assert detector.rpn.head.box_deltas.weight.grad is None
    losses["box"].backward()
    assert detector.rpn.head.box_deltas.weight.grad is None


def test_detections_of_a_cascade_against_brute_force(detectors: Any) -> None:
    detector = make(detectors, selection={"max_detections": 15, "score_threshold": 0.02}).eval()
    stir(detector)
    features = detectors.features(pictures=1)
    found = detector.detect(features, sizes_hw=[(60, 90)], image_ids=[7])[0]
    pyramid = detector.neck(features)
    proposals = detector.rpn.propose(detector.rpn(pyramid), pyramid, sizes_hw=[(60, 90)])
    boxes = proposals.boxes[0, proposals.is_valid[0]]
    picture = torch.zeros(len(boxes), dtype=torch.int64)
    logits_sum = torch.zeros(len(boxes), 4)
    for n, head in enumerate(detector.heads, start=1):
        logits, deltas = head(detector.roi_align(pyramid, boxes, picture))
        logits_sum += logits
        weights = torch.tensor([10.0, 10.0, 5.0, 5.0]) * n
        boxes = clip_boxes(apply_deltas(deltas[:, 0] / weights, boxes), (60, 90)).detach()
    scores = (logits_sum / 3).softmax(dim=1)[:, :3].detach()
    kept: list[tuple[float, int, int]] = []
    for k in range(3):
        own = (scores[:, k] > 0.02) & ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
        rows = own.nonzero().squeeze(1)
        chosen = rows[nms(boxes[rows], scores[rows, k], 0.5)]
        kept += [(scores[row, k].item(), int(row), k) for row in chosen]
    kept = sorted(kept, reverse=True)[:15]
    assert found.image_id == 7
    assert len(found) > 5
    torch.testing.assert_close(found.scores, torch.tensor([score for score, _, _ in kept]))
    assert found.labels.tolist() == [k for _, _, k in kept]
    torch.testing.assert_close(
        found.boxes, boxes[[row for _, row, _ in kept]], rtol=1e-4, atol=1e-3
    )


def test_class_specific_boxes_move_by_their_own_class(detectors: Any) -> None:
    detector = make(detectors, "faster_rcnn", selection={"score_threshold": 0.0}).eval()
    stir(detector)
    features = detectors.features(pictures=1)
    found = detector.detect(features, sizes_hw=[(64, 96)], image_ids=[7])[0]
    pyramid = detector.neck(features)
    proposals = detector.rpn.propose(detector.rpn(pyramid), pyramid, sizes_hw=[(64, 96)])
    boxes = proposals.boxes[0, proposals.is_valid[0]]
    head = detector.heads[0]
    cells = detector.roi_align(pyramid, boxes, torch.zeros(len(boxes), dtype=torch.int64))
    logits, deltas = head(cells)
    scores = logits.softmax(dim=1)[:, :3].flatten()
    best = int(scores.argmax())
    row, label = best // 3, best % 3
    box = apply_deltas(deltas[row, label] / torch.tensor([10.0, 10.0, 5.0, 5.0]), boxes[row])
    assert found.labels[0] == label
    torch.testing.assert_close(found.boxes[0], clip_boxes(box, (64, 96)), rtol=1e-4, atol=1e-3)


def test_heads_that_do_not_fit_the_stages(detectors: Any) -> None:
    faster = make(detectors, "faster_rcnn")
    parts = {
        "adapters": faster.adapters,
        "neck": faster.neck,
        "rpn": faster.rpn,
        "roi_align": faster.roi_align,
        "selection": faster.selection,
    }
    heads = list(faster.heads)
    with pytest.raises(ValueError, match="expected one head a stage, got 1 for 2"):
        RCNN(heads=heads, stages=paper_stages((0.5, 0.7)), **parts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="several stages need class-agnostic heads"):
        RCNN(heads=heads * 2, stages=paper_stages((0.5, 0.7)), **parts)  # type: ignore[arg-type]

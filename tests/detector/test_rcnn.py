from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from cachedet.detector.boxes import apply_deltas, clip_boxes, encode_deltas
from cachedet.detector.matching import BACKGROUND, IGNORED, pad_ground_truth
from cachedet.detector.rcnn import RCNN, RoIs, Stage, move_boxes, paper_stages
from cachedet.detector.rpn import Proposals


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


def make_rois() -> RoIs:
    """Ten RoIs of two images: positives, background and an ignored one."""
    generator = torch.Generator().manual_seed(8)
    boxes = torch.rand(10, 4, dtype=torch.float64, generator=generator) * 20
    boxes[:, 2:] += 30
    gt_boxes = torch.rand(10, 4, dtype=torch.float64, generator=generator) * 30
    gt_boxes[:, 2:] += 40
    return RoIs(
        boxes=boxes,
        image=torch.tensor([0] * 6 + [1] * 4),
        matched=torch.tensor([0, 1, BACKGROUND, IGNORED, 1, BACKGROUND, 0, BACKGROUND, 0, 0]),
        gt_boxes=gt_boxes,
        gt_labels=torch.tensor([2, 0, 1, 1, 0, 2, 1, 0, 1, 1]),
    )


def test_losses_by_plain_loops_in_float64(detectors: Any) -> None:
    detector, rois = make(detectors, "faster_rcnn"), make_rois()
    logits = torch.randn(10, 4, dtype=torch.float64)
    deltas = torch.randn(10, 3, 4, dtype=torch.float64) * 3
    weights = (20.0, 20.0, 10.0, 10.0)
    class_sum, counted, box_sum, positives = 0.0, 0, 0.0, 0
    for r, match in enumerate(rois.matched.tolist()):
        if match == IGNORED:
            continue
        label = 3 if match == BACKGROUND else int(rois.gt_labels[r])
        class_sum += math.log(sum(math.exp(v) for v in logits[r].tolist())) - float(
            logits[r, label]
        )
        counted += 1
        if match >= 0:
            positives += 1
            wanted = encode_deltas(rois.gt_boxes[r], rois.boxes[r])
            for c in range(4):
                error = abs(float(deltas[r, label, c]) - float(wanted[c]) * weights[c])
                box_sum += error**2 / 2 if error <= 1 else error - 0.5
    assert (counted, positives) == (9, 6)
    loss = detector._class_loss(logits, rois)
    assert loss.item() == pytest.approx(class_sum / counted, rel=1e-12)
    loss = detector._box_loss(deltas, rois, Stage(foreground_iou=0.5, delta_weights=weights))
    assert loss.item() == pytest.approx(box_sum / (4 * positives), rel=1e-12)


def test_box_losses_have_the_weights_of_the_config(detectors: Any) -> None:
    """Four times the mean over coordinates is their sum over the positives."""
    plain, rois = make(detectors, "faster_rcnn"), make_rois()
    changes = {"roi_head": {"box_weight": 4.0}, "rpn": {"box_weight": 9.0}}
    weighted = make(detectors, "faster_rcnn", **changes)
    assert weighted.rpn.box_weight == 9.0
    stage, deltas = paper_stages((0.5,))[0], torch.randn(10, 3, 4, dtype=torch.float64)
    loss = weighted._box_loss(deltas, rois, stage)
    torch.testing.assert_close(loss, plain._box_loss(deltas, rois, stage) * 4)


def test_gradients_of_the_losses_by_finite_differences(detectors: Any) -> None:
    detector, rois = make(detectors, "faster_rcnn"), make_rois()
    stage = paper_stages((0.5,))[0]
    deltas = torch.randn(10, 3, 4, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(10, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: detector._box_loss(x, rois, stage), (deltas,))
    assert torch.autograd.gradcheck(lambda x: detector._class_loss(x, rois), (logits,))


def test_each_stage_labels_at_its_own_iou(detectors: Any) -> None:
    """Boxes of IoU 0.45, 0.6, 0.75 and 0.9 with the ground truth, in the second of two images."""
    ground_truth = pad_ground_truth(
        [detectors.targets([]), detectors.targets([[0, 0, 90, 60]], labels=[2])]
    )
    boxes = torch.tensor([[0.0, 0, 90 * iou, 60] for iou in (0.45, 0.6, 0.75, 0.9)])
    image = torch.ones(4, dtype=torch.int64)
    detector = make(detectors)
    for stage, positive in zip(detector.stages, (3, 2, 1), strict=True):
        rois = detector._label(boxes, image, ground_truth, stage)
        assert rois.matched.tolist() == [BACKGROUND] * (4 - positive) + [0] * positive
        assert rois.gt_labels[-1] == 2
        assert torch.equal(rois.gt_boxes[-1], ground_truth.boxes[1, 0])
    elsewhere = detector._label(boxes, 1 - image, ground_truth, detector.stages[0])
    assert elsewhere.matched.tolist() == [BACKGROUND] * 4


def test_the_first_stage_samples_proposals_and_the_annotations(detectors: Any) -> None:
    detector = make(detectors)
    detector.samples, detector.positive_fraction = 8, 0.25
    boxes = [[0.0, 0, 50, 50], [40, 0, 90, 60], [0, 0, 96, 64]]
    targets = [
        detectors.targets(boxes, labels=[2, 0, 1], crowd=[False, False, True]),
        detectors.targets([]),
    ]
    proposals = Proposals(
        boxes=torch.tensor([[60.0, 0, 62, 2], [5, 5, 9, 9], [0, 0, 50, 49]]).expand(2, 3, 4),
        scores=torch.zeros(2, 3),
        is_valid=torch.tensor([[True, True, True], [True, False, False]]),
    )
    rois = detector._sample(proposals, pad_ground_truth(targets))
    assert rois.image.tolist() == [0, 0, 1]  # the small ones lie in a crowd and teach nothing
    positive = rois.is_positive
    assert positive.tolist() == [True, True, False]  # a quarter of 8
    known = [[0.0, 0, 50, 49], *boxes[:2]]
    assert all(box in known for box in rois.boxes[positive].tolist())
    for box, label in zip(rois.gt_boxes[positive], rois.gt_labels[positive], strict=True):
        assert label == (2 if box[0] == 0 else 0)


def test_boxes_move_by_the_weights_of_their_stage() -> None:
    boxes, gt_boxes = torch.tensor([[10.0, 10, 50, 30]]), torch.tensor([[12.0, 8, 60, 36]])
    for stage in paper_stages((0.5, 0.7, 0.8)):
        deltas = encode_deltas(gt_boxes, boxes) * torch.tensor(stage.delta_weights)
        torch.testing.assert_close(move_boxes(boxes, deltas, stage), gt_boxes)


def record(
    monkeypatch: pytest.MonkeyPatch, detector: RCNN
) -> tuple[list[tuple[Tensor, Tensor, RoIs]], list[Tensor]]:
    """What each stage's class loss saw, and every stage's box loss, as the detector runs."""
    plain_class, plain_box = RCNN._class_loss, RCNN._box_loss
    seen: list[tuple[Tensor, Tensor, RoIs]] = []
    box_losses: list[Tensor] = []

    def spy_class(self: RCNN, logits: Tensor, rois: RoIs) -> Tensor:
        loss = plain_class(self, logits, rois)
        seen.append((loss, logits, rois))
        return loss

    def spy_box(self: RCNN, deltas: Tensor, rois: RoIs, stage: Stage) -> Tensor:
        deltas.retain_grad()
        box_losses.append(plain_box(self, deltas, rois, stage))
        moved_by.append(deltas)
        return box_losses[-1]

    moved_by: list[Tensor] = []
    monkeypatch.setattr(RCNN, "_class_loss", spy_class)
    monkeypatch.setattr(RCNN, "_box_loss", spy_box)
    monkeypatch.setattr(detector, "moved_by", moved_by, raising=False)
    return seen, box_losses


def test_a_cascades_stages(detectors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved, clipped, labelled anew, nothing sampled anew; losses averaged; no gradient between."""
    detector = make(detectors)
    stir(detector, std=0.3)
    seen, box_losses = record(monkeypatch, detector)
    features, targets = detectors.batch()
    losses = detector(features, targets)
    torch.testing.assert_close(losses["class"], sum(loss for loss, _, _ in seen) / 3)
    torch.testing.assert_close(losses["box"], sum(box_losses) / 3)
    ground_truth = pad_ground_truth(targets)
    for index in (1, 2):
        (_, _, before), (_, _, now) = seen[index - 1], seen[index]
        deltas = detector.moved_by[index - 1].detach()[:, 0]  # type: ignore[attr-defined]
        moved = move_boxes(before.boxes, deltas, detector.stages[index - 1])
        clipped = clip_boxes(moved, (64, 96))
        assert not torch.equal(moved, clipped)
        torch.testing.assert_close(now.boxes, clipped)
        assert torch.equal(now.image, before.image)
        again = detector._label(now.boxes, now.image, ground_truth, detector.stages[index])
        assert torch.equal(now.matched, again.matched)
    box_losses[1].backward()
    grads = [head.box_deltas.weight.grad for head in detector.heads]  # type: ignore[union-attr]
    assert grads[0] is None
    assert grads[2] is None
    assert detector.rpn.head.box_deltas.weight.grad is None


def test_detections_of_a_cascade_against_brute_force(detectors: Any) -> None:
    detector = make(detectors, postprocess={"max_detections": 15, "score_threshold": 0.02}).eval()
    stir(detector)
    features = detectors.features(images=1)
    detections = detector.detect(features, sizes_hw=[(60, 90)], image_ids=[7])[0]
    pyramid = detector.neck(features)
    proposals = detector.rpn.propose(detector.rpn(pyramid), pyramid, sizes_hw=[(60, 90)])
    boxes = proposals.boxes[0, proposals.is_valid[0]]
    image = torch.zeros(len(boxes), dtype=torch.int64)
    logits_sum = torch.zeros(len(boxes), 4)
    for n, head in enumerate(detector.heads, start=1):
        logits, deltas = head(detector.roi_align(pyramid, boxes, image))
        logits_sum += logits
        weights = torch.tensor([10.0, 10.0, 5.0, 5.0]) * n
        boxes = clip_boxes(apply_deltas(deltas[:, 0] / weights, boxes), (60, 90)).detach()
    scores = (logits_sum / 3).softmax(dim=1)[:, :3].detach()
    kept: list[tuple[float, int, int]] = []
    for k in range(3):
        usable = (scores[:, k] > 0.02) & ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
        rows = usable.nonzero().squeeze(1)
        chosen = rows[nms(boxes[rows], scores[rows, k], 0.5)]
        kept += [(scores[row, k].item(), int(row), k) for row in chosen]
    kept = sorted(kept, reverse=True)[:15]
    assert detections.image_id == 7
    assert len(detections) > 5
    torch.testing.assert_close(detections.scores, torch.tensor([score for score, _, _ in kept]))
    assert detections.labels.tolist() == [k for _, _, k in kept]
    torch.testing.assert_close(
        detections.boxes, boxes[[row for _, row, _ in kept]], rtol=1e-4, atol=1e-3
    )


def test_class_specific_boxes_move_by_their_own_class(detectors: Any) -> None:
    detector = make(detectors, "faster_rcnn", postprocess={"score_threshold": 0.0}).eval()
    stir(detector)
    features = detectors.features(images=1)
    detections = detector.detect(features, sizes_hw=[(64, 96)], image_ids=[7])[0]
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
    assert detections.labels[0] == label
    torch.testing.assert_close(detections.boxes[0], clip_boxes(box, (64, 96)), rtol=1e-4, atol=1e-3)


def test_proposals_are_those_the_heads_see(detectors: Any) -> None:
    detector = make(detectors, "faster_rcnn").eval()
    stir(detector)
    features = detectors.features(images=2)
    sizes_hw = [(64, 96), (50, 60)]
    pyramid = detector.neck(features)
    expected = detector.rpn.propose(detector.rpn(pyramid), pyramid, sizes_hw=sizes_hw)
    proposals = detector.propose(features, sizes_hw=sizes_hw, image_ids=[7, 9])
    assert [of_image.image_id for of_image in proposals] == [7, 9]
    for n, of_image in enumerate(proposals):
        valid = expected.is_valid[n]
        assert len(of_image) > 5
        assert torch.equal(of_image.boxes, expected.boxes[n, valid])
        torch.testing.assert_close(of_image.scores, 1 / (1 + (-expected.scores[n, valid]).exp()))
        assert not of_image.labels.any()


def test_heads_that_do_not_fit_the_stages(detectors: Any) -> None:
    faster = make(detectors, "faster_rcnn")
    shared = ("adapters", "neck", "rpn", "roi_align", "postprocess")
    parts: dict[str, Any] = {name: getattr(faster, name) for name in shared}
    parts |= {"samples": 512, "positive_fraction": 0.25, "huber_delta": 1.0, "box_weight": 1.0}
    heads = list(faster.heads)
    with pytest.raises(ValueError, match="expected one head a stage, got 1 for 2"):
        RCNN(heads=heads, stages=paper_stages((0.5, 0.7)), **parts, mask_branch=None)
    with pytest.raises(ValueError, match="several stages need class-agnostic heads"):
        RCNN(heads=heads * 2, stages=paper_stages((0.5, 0.7)), **parts, mask_branch=None)

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from cachedet.config.detector import RetinaNetConfig
from cachedet.detector.boxes import apply_deltas, encode_deltas
from cachedet.detector.build import build_detector
from cachedet.detector.matching import BACKGROUND, IGNORED, MatchRule, match_boxes, pad_ground_truth
from cachedet.errors import ConfigError
from cachedet.structures import Targets

GOLDEN = Path(__file__).with_name("golden_losses.json")


def matched_of(anchors: Tensor, targets: list[Targets]) -> Tensor:
    rule = MatchRule(foreground_iou=0.5, background_iou=0.5, allow_low_quality="one")
    return match_boxes(anchors, pad_ground_truth(targets), rule)


def test_losses_against_plain_loops_in_float64(detectors: Any) -> None:
    """An oracle written from the papers' formulas, one anchor and class at a time."""
    detector = detectors.detector("retinanet", norm="group").double()
    features, targets = detectors.batch()
    features = {name: maps.double() for name, maps in features.items()}
    pyramid = detector.neck(features)
    logits, deltas = detector.head(pyramid)
    logits = (logits + torch.randn_like(logits)).detach()  # spread the scores
    deltas = deltas.detach()
    anchors = detector.anchors(pyramid).double()
    double_targets = [dataclasses.replace(t, boxes=t.boxes.double()) for t in targets]
    matched = matched_of(anchors, double_targets)
    class_sum, box_sum, positives = 0.0, 0.0, 0
    for n, target in enumerate(targets):
        boxes, labels = target.boxes.double(), target.labels
        for t, match in enumerate(matched[n].tolist()):
            if match == IGNORED:
                continue
            for k in range(3):
                positive = match >= 0 and int(labels[match]) == k
                p = 1 / (1 + math.exp(-float(logits[n, t, k])))
                if positive:
                    class_sum += -0.25 * (1 - p) ** 1.5 * math.log(p)
                else:
                    class_sum += -0.75 * p**1.5 * math.log(1 - p)
            if match >= 0:
                positives += 1
                wanted = encode_deltas(boxes[match][None], anchors[t][None])[0]
                for error in (deltas[n, t] - wanted).abs().tolist():
                    small = 0.5 * error**2 if error <= 0.1 else 0.1 * (error - 0.05)
                    box_sum += 50.0 * small / 4
    ground_truth = pad_ground_truth(double_targets)
    assert positives > 4
    assert int((matched >= 0).sum()) == positives
    assert BACKGROUND in matched
    assert IGNORED in matched
    losses = detector.losses(logits, deltas, anchors=anchors, ground_truth=ground_truth)
    for name, expected in (("class", class_sum), ("box", box_sum)):
        assert losses[name].item() == pytest.approx(expected / (positives + 1), rel=1e-6)
    losses = detector(features, double_targets)
    assert losses["box"].item() == pytest.approx(box_sum / (positives + 1), rel=1e-6)


def test_golden_losses(detectors: Any) -> None:
    """A refactor must not move them; a change of the maths records new ones and says why."""
    golden = json.loads(GOLDEN.read_text())
    for norm, expected in golden.items():
        detector = detectors.detector("retinanet", norm=norm)
        optimizer = torch.optim.SGD(detector.parameters(), lr=0.01)
        rows = []
        for _ in range(3):
            losses = detector(*detectors.batch())
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            rows.append([losses["class"].item(), losses["box"].item()])
        torch.testing.assert_close(torch.tensor(rows), torch.tensor(expected), rtol=1e-4, atol=0)


def test_scores_start_at_the_prior(detectors: Any) -> None:
    detector = detectors.detector("retinanet").eval()
    features, _ = detectors.batch()
    logits, deltas = detector.head(detector.neck(features))
    torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, 0.01), rtol=1e-2, atol=0)
    assert logits.shape == (2, (8 * 12 + 4 * 6 + 2 * 3) * 9, 3)
    assert deltas.shape == (2, logits.shape[1], 4)


def test_images_without_boxes_give_finite_losses(detectors: Any) -> None:
    features, targets = detectors.batch()
    losses = detectors.detector("retinanet")(features, [targets[1], targets[1]])
    assert losses["box"].item() == 0.0
    assert 0 < losses["class"].item() < 1000


def test_crowd_teaches_nothing_at_its_background(detectors: Any) -> None:
    detector = detectors.detector("retinanet", norm="group")
    features, targets = detectors.batch()
    anchors = detector.anchors(detector.neck(features))
    matched, ground_truth = matched_of(anchors, targets), pad_ground_truth(targets)
    logits, deltas = torch.zeros(2, len(anchors), 3), torch.zeros(2, len(anchors), 4)
    before = detector.losses(logits, deltas, anchors=anchors, ground_truth=ground_truth)["class"]
    logits[matched == IGNORED] = 9.0
    after = detector.losses(logits, deltas, anchors=anchors, ground_truth=ground_truth)["class"]
    assert torch.equal(after, before)


def test_detections_against_brute_force(detectors: Any) -> None:
    detector = detectors.detector("retinanet", postprocess={"max_detections": 20}).eval()
    torch.nn.init.normal_(detector.head.class_logits.weight, std=0.6)
    torch.nn.init.normal_(detector.head.box_deltas.weight, std=0.2)
    features, _ = detectors.batch()
    detections = detector.detect(features, sizes_hw=[(64, 96), (50, 80)], image_ids=[8, 9])
    logits, deltas = detector.head(detector.neck(features))
    anchors = detector.anchors(detector.neck(features))
    limits = torch.tensor([80.0, 50.0, 80.0, 50.0])
    boxes = apply_deltas(deltas[1], anchors).clamp(min=0).minimum(limits).detach()
    scores = logits[1].sigmoid().detach()
    kept: list[tuple[float, int, int]] = []
    order = sorted(
        ((scores[t, k].item(), t, k) for t in range(len(boxes)) for k in range(3)), reverse=True
    )
    for score, t, k in order:
        solid = bool((boxes[t, 2:] > boxes[t, :2]).all())
        rivals = [t2 for _, t2, k2 in kept if k2 == k]
        free = all(float(box_iou(boxes[t][None], boxes[r][None])) <= 0.5 for r in rivals)
        if score > 0.05 and solid and free and len(kept) < 20:
            kept.append((score, t, k))
    assert detections[1].image_id == 9
    assert detections[1].labels.tolist() == [k for _, _, k in kept]
    torch.testing.assert_close(detections[1].scores, torch.tensor([score for score, _, _ in kept]))
    torch.testing.assert_close(detections[1].boxes, boxes[[t for _, t, _ in kept]])


def test_no_detections(detectors: Any) -> None:
    features, _ = detectors.batch()
    both = (
        detectors.detector("retinanet")
        .eval()
        .detect(features, sizes_hw=[(64, 96)] * 2, image_ids=[1, 2])
    )
    assert [len(detections) for detections in both] == [0, 0]


def test_a_level_the_store_lacks(detectors: Any) -> None:
    config = RetinaNetConfig(levels=("C5",))
    with pytest.raises(ConfigError, match="asks for 'C5', the store holds C3, C4"):
        build_detector(config, spec=detectors.spec, num_classes=1)
    detector = build_detector(
        RetinaNetConfig(levels=("C4",), num_convs=0), spec=detectors.spec, num_classes=1
    )
    assert detector.neck.in_names == ("C4",)

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from cachedet.config.detector import RetinaNetConfig
from cachedet.detector.boxes import apply_deltas, encode_deltas
from cachedet.detector.build import build_detector
from cachedet.detector.matching import BACKGROUND, IGNORED, MatchRule, match_boxes, pad_ground_truth
from cachedet.detector.retinanet import RetinaNet
from cachedet.errors import ConfigError
from cachedet.structures import Features, FeatureSpec, LevelSpec, Targets

SPEC = FeatureSpec(
    (LevelSpec(name="C3", channels=4, stride=8), LevelSpec(name="C4", channels=6, stride=16))
)
GOLDEN = Path(__file__).with_name("golden_losses.json")


def make_detector(**changes: object) -> RetinaNet:
    config = RetinaNetConfig.model_validate(
        {"neck": {"kind": "fpn", "channels": 16, "num_levels": 3}, "num_convs": 1} | changes
    )
    torch.manual_seed(3)
    detector = build_detector(config, spec=SPEC, num_classes=3)
    assert isinstance(detector, RetinaNet)
    return detector


def matched_of(anchors: Tensor, targets: list[Targets]) -> Tensor:
    rule = MatchRule(foreground_iou=0.5, background_iou=0.5, allow_low_quality="one")
    return match_boxes(anchors, pad_ground_truth(targets), rule)


def make_batch() -> tuple[Features, list[Targets]]:
    generator = torch.Generator().manual_seed(5)
    features = {
        level.name: torch.randn(
            2, level.channels, 64 // level.stride, 96 // level.stride, generator=generator
        )
        for level in SPEC
    }
    targets = [
        Targets(
            image_id=1,
            size_hw=(64, 96),
            boxes=torch.tensor([[4.0, 4.0, 40.0, 44.0], [50.0, 10.0, 90.0, 60.0], [0, 0, 30, 30]]),
            labels=torch.tensor([2, 0, 1]),
            crowd=torch.tensor([False, False, True]),
        ),
        Targets(
            image_id=2,
            size_hw=(64, 96),
            boxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.int64),
            crowd=torch.zeros(0, dtype=torch.bool),
        ),
    ]
    return features, targets


def test_losses_against_plain_loops_in_float64() -> None:
    """An oracle written from the papers' formulas, one anchor and class at a time."""
    detector = make_detector(norm="group").double()
    features, targets = make_batch()
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
    found = detector(features, double_targets)
    assert found["box"].item() == pytest.approx(box_sum / (positives + 1), rel=1e-6)


def test_golden_losses() -> None:
    """A refactor must not move them; a change of the maths records new ones and says why."""
    golden = json.loads(GOLDEN.read_text())
    for norm, expected in golden.items():
        detector = make_detector(norm=norm)
        optimizer = torch.optim.SGD(detector.parameters(), lr=0.01)
        found = []
        for _ in range(3):
            losses = detector(*make_batch())
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            found.append([losses["class"].item(), losses["box"].item()])
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=0)


def test_scores_start_at_the_prior() -> None:
    detector = make_detector().eval()
    features, _ = make_batch()
    logits, deltas = detector.head(detector.neck(features))
    torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, 0.01), rtol=1e-2, atol=0)
    assert logits.shape == (2, (8 * 12 + 4 * 6 + 2 * 3) * 9, 3)
    assert deltas.shape == (2, logits.shape[1], 4)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_gradient_reaches_every_parameter(norm: str) -> None:
    detector = make_detector(norm=norm, activation="silu")
    torch.stack(list(detector(*make_batch()).values())).sum().backward()
    idle = [name for name, p in detector.named_parameters() if p.grad is None]
    assert idle == []


def test_images_without_boxes_give_finite_losses() -> None:
    features, targets = make_batch()
    losses = make_detector()(features, [targets[1], targets[1]])
    assert losses["box"].item() == 0.0
    assert 0 < losses["class"].item() < 1000


def test_crowd_teaches_nothing_at_its_background() -> None:
    detector = make_detector(norm="group")
    features, targets = make_batch()
    anchors = detector.anchors(detector.neck(features))
    matched, ground_truth = matched_of(anchors, targets), pad_ground_truth(targets)
    logits, deltas = torch.zeros(2, len(anchors), 3), torch.zeros(2, len(anchors), 4)
    before = detector.losses(logits, deltas, anchors=anchors, ground_truth=ground_truth)["class"]
    logits[matched == IGNORED] = 9.0
    after = detector.losses(logits, deltas, anchors=anchors, ground_truth=ground_truth)["class"]
    assert torch.equal(after, before)


def test_detections_against_brute_force() -> None:
    detector = make_detector(postprocess={"max_detections": 20}).eval()
    torch.nn.init.normal_(detector.head.class_logits.weight, std=0.6)
    torch.nn.init.normal_(detector.head.box_deltas.weight, std=0.2)
    features, _ = make_batch()
    found = detector.detect(features, sizes_hw=[(64, 96), (50, 80)], image_ids=[8, 9])
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
    assert found[1].image_id == 9
    assert found[1].labels.tolist() == [k for _, _, k in kept]
    torch.testing.assert_close(found[1].scores, torch.tensor([score for score, _, _ in kept]))
    torch.testing.assert_close(found[1].boxes, boxes[[t for _, t, _ in kept]])


def test_no_detections() -> None:
    features, _ = make_batch()
    found = make_detector().eval().detect(features, sizes_hw=[(64, 96)] * 2, image_ids=[1, 2])
    assert [len(detections) for detections in found] == [0, 0]


def test_a_level_the_store_lacks() -> None:
    config = RetinaNetConfig(levels=("C5",))
    with pytest.raises(ConfigError, match="asks for 'C5', the store holds C3, C4"):
        build_detector(config, spec=SPEC, num_classes=1)
    detector = build_detector(
        RetinaNetConfig(levels=("C4",), num_convs=0), spec=SPEC, num_classes=1
    )
    assert detector.neck.in_names == ("C4",)

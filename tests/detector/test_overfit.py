"""Every detector of the matrix learns eight images by heart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cachedet.evaluation.metrics import score_detections

SIZE_HW = (64, 96)
ROI_HEAD = {"samples": 24, "num_convs": 0, "num_fcs": 2, "fc_channels": 64}
STEPS = {"retinanet": 100, "faster_rcnn": 160, "cascade_rcnn": 200}


def random_boxes(images: int) -> list[list[list[float]]]:
    """One box in each half of an image, of one of three classes."""
    generator = torch.Generator().manual_seed(1)
    boxes = []
    for n in range(images):
        draw = torch.rand(2, 4, generator=generator).tolist()
        boxes.append(
            [
                [x0 + 8 * x, 4 + 14 * y, x0 + 8 * x + 20 + 16 * w, 4 + 14 * y + 20 + 20 * h, k, 0]
                for k, (x0, (x, y, w, h)) in enumerate(zip((2.0, 50.0), draw, strict=True), start=n)
                for k in [k % 3]
            ]
        )
    return boxes


@pytest.mark.parametrize(
    ("kind", "neck"),
    [
        ("retinanet", "fpn"),
        ("faster_rcnn", "fpn"),
        ("cascade_rcnn", "nasfpn"),
        pytest.param("retinanet", "nasfpn", marks=pytest.mark.thorough),
        pytest.param("faster_rcnn", "nasfpn", marks=pytest.mark.thorough),
        pytest.param("cascade_rcnn", "fpn", marks=pytest.mark.thorough),
    ],
)
def test_eight_images_by_heart(detectors: Any, annotations_of: Any, kind: str, neck: str) -> None:
    ground_truth = annotations_of([SIZE_HW] * 8, random_boxes(8))
    features = detectors.features(*SIZE_HW, images=8)
    targets = [
        detectors.targets(
            ground_truth.boxes[ground_truth.boxes_of(n)].tolist(),
            labels=ground_truth.labels[ground_truth.boxes_of(n)].tolist(),
        )
        for n in range(8)
    ]
    wide = {} if kind == "retinanet" else {"roi_head": ROI_HEAD}
    detector = detectors.detector(kind, neck, norm="group", adapters={"kind": "bottleneck"}, **wide)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS[kind])
    for _ in range(STEPS[kind]):
        optimizer.zero_grad()
        torch.stack(list(detector(features, targets).values())).sum().backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    found = detector.eval().detect(
        features, sizes_hw=[SIZE_HW] * 8, image_ids=ground_truth.image_ids.tolist()
    )
    scores = score_detections(ground_truth, found)
    assert scores.ap50 > 0.95

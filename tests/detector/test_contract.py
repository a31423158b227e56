"""Our own detectors and a foreign one pass the contract, and what breaks it is told apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from cachedet.config.detector import DetectorConfig
from cachedet.detector.build import build_detector
from cachedet.detector.protocol import (
    Detector,
    classifiers_of,
    compute_losses,
    lr_scales_of,
    max_proposals_of,
    parts_of,
    require_detector,
    run_detector,
)
from cachedet.errors import DetectorError
from cachedet.structures import Detections, FeatureSpec

FPN = {"kind": "fpn", "channels": 16, "num_levels": 3}
TWO_STAGE = {
    "neck": FPN,
    "rpn": {"size_factor": 3.0, "samples": 32, "train_post_nms": 40, "test_post_nms": 30},
    "roi_head": {"samples": 16, "num_convs": 1, "conv_channels": 8, "fc_channels": 24},
}
OURS: dict[str, dict[str, Any]] = {
    "retinanet": {"kind": "retinanet", "neck": FPN, "num_convs": 1},
    "retinanet nasfpn": {"kind": "retinanet", "neck": {"kind": "nasfpn", "channels": 16}},
    "faster_rcnn": {"kind": "faster_rcnn", **TWO_STAGE},
    "cascade_rcnn": {"kind": "cascade_rcnn", **TWO_STAGE},
}


def maker_of(config: dict[str, Any]) -> Callable[[FeatureSpec, int], nn.Module]:
    adapter: TypeAdapter[DetectorConfig] = TypeAdapter(DetectorConfig)
    parsed = adapter.validate_python(config)
    return lambda spec, num_classes: build_detector(parsed, spec=spec, num_classes=num_classes)


@pytest.mark.parametrize("name", OURS)
def test_our_detectors_pass(contract: Any, name: str) -> None:
    contract.check_detector(maker_of(OURS[name]))


def test_a_foreign_head_passes(contract: Any, fcos: Any) -> None:
    contract.check_detector(fcos.FCOSHead)


def test_what_is_optional_has_a_default(contract: Any, fcos: Any) -> None:
    head = fcos.FCOSHead(contract.SPEC, 3)
    assert isinstance(head, Detector)
    assert parts_of(head) == [head]
    assert lr_scales_of(head) == [(head, 1.0)]
    assert max_proposals_of(head) is None
    message = r"needs a detector with a method classifiers\(\); FCOS"
    with pytest.raises(DetectorError, match=message):
        classifiers_of(head)


class Answers(nn.Module):
    """Returns whatever it was made with."""

    def __init__(self, losses: Any = None, detections: Any = None) -> None:
        super().__init__()
        self.losses, self.detections = losses, detections

    def forward(self, features: Any, targets: Any) -> Any:
        return self.losses

    def detect(self, features: Any, *, sizes_hw: Sequence[Any], image_ids: Sequence[int]) -> Any:
        return self.detections


def scalar(value: float = 1.0) -> Tensor:
    return torch.tensor(value, requires_grad=True)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (scalar(), r"Answers.forward must return its losses as a dict .* got Tensor; return \{'lo"),
        ([scalar()], "as a dict of name to scalar tensor, got list"),
        (None, "got NoneType"),
        ({}, "returned no losses; there is nothing to train on"),
        ({"class": torch.ones(2)}, r"loss 'class' must be a scalar tensor, got shape \(2,\)"),
        ({"class": 1.0}, "loss 'class' must be a scalar tensor, got float"),
        ({"class": torch.tensor(1.0)}, "no loss depends on a parameter that is trained; was it de"),
    ],
)
def test_losses_that_are_none(losses: Any, message: str) -> None:
    with pytest.raises(DetectorError, match=message):
        compute_losses(Answers(losses), {}, [])


def test_losses_without_gradient_serve_where_none_is_wanted() -> None:
    with torch.no_grad():
        assert compute_losses(Answers({"a": torch.tensor(1.0)}), {}, [])["a"].item() == 1.0


def detections_of(boxes: Any, scores: Any = (0.5,), labels: Any = (0,)) -> Detections:
    return Detections(
        image_id=7,
        boxes=torch.tensor(boxes),
        scores=torch.tensor(scores),
        labels=torch.tensor(labels),
    )


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        (
            None,
            "Answers.detect must return a list with the Detections of each of the 1 images, got",
        ),
        ([], "each of the 1 images, got 0"),
        ([{"boxes": []}], "must return Detections, got dict"),
        (
            [detections_of([0.0, 0.0, 1.0, 1.0])],
            r"expected boxes \(D, 4\), .* image id 7, got \(4,\), \(1,\)",
        ),
        ([detections_of([[0.0, 0.0, 1.0, 1.0]], (0.5, 0.4))], r"got \(1, 4\), \(2,\) and \(1,\)"),
        (
            [detections_of([[0.0, 0.0, 97.0, 1.0]])],
            r"within the 96 x 64 pixels of the view .* 97\.0, 1\.0\]",
        ),
        (
            [detections_of([[-3.0, 0.0, 9.0, 1.0]])],
            r"got box \[-3\.0, 0\.0, 9\.0, 1\.0\] with score 0\.5",
        ),
        ([detections_of([[float("nan"), 0.0, 9.0, 1.0]])], r"got box \[nan"),
        ([detections_of([[0.0, 0.0, 9.0, 1.0]], (float("nan"),))], "with score nan for image id 7"),
    ],
)
def test_detections_that_are_none(detections: Any, message: str) -> None:
    with pytest.raises(DetectorError, match=message):
        run_detector(Answers(None, detections), {}, sizes_hw=[(64, 96)], image_ids=[7])


def test_what_is_no_detector() -> None:
    with pytest.raises(DetectorError, match=r"a detector, a torch\.nn\.Module, got str"):
        require_detector("retinanet")
    with pytest.raises(DetectorError, match=r"Linear has no method detect\(features, \*, sizes_hw"):
        require_detector(nn.Linear(1, 1))

"""What holds for every detector of the matrix: finite on any input, learnable, golden losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

KINDS = ("retinanet", "faster_rcnn", "cascade_rcnn")
MATRIX = [(kind, neck) for kind in KINDS for neck in ("fpn", "nasfpn")]
GOLDEN = Path(__file__).with_name("golden_detectors.json")


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize(("kind", "neck"), MATRIX)
def test_golden_losses(detectors: Any, kind: str, neck: str) -> None:
    """A refactor must not move them; a change of the maths records new ones and says why.

    python tests/detector/make_golden.py writes the file anew.
    """
    expected = json.loads(GOLDEN.read_text())[f"{kind} {neck}"]
    detector = detectors.detector(kind, neck, adapters={"kind": "bottleneck"})
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01)
    computed = []
    for _ in range(3):
        losses = detector(*detectors.batch())
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        computed.append([loss.item() for loss in losses.values()])
    torch.testing.assert_close(torch.tensor(computed), torch.tensor(expected), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("kind", "neck"), MATRIX)
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_gradient_reaches_every_parameter(detectors: Any, kind: str, neck: str, norm: str) -> None:
    detector = detectors.detector(
        kind, neck, norm=norm, activation="silu", adapters={"kind": "pointwise"}
    )
    total(detector(*detectors.batch())).backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None] == []
    idle = [name for name, p in detector.named_parameters() if not p.grad.any()]
    # a coarse level on which nothing is sampled teaches its own parts nothing
    assert [n for n in idle if not n.startswith("neck.") and "tower.norms." not in n] == []
    assert [n for n, p in detector.named_parameters() if not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_finite(detectors: Any, contract: Any, kind: str) -> None:
    detector = detectors.detector(kind)
    names = ["class", "box"] if kind == "retinanet" else ["rpn_class", "rpn_box", "class", "box"]
    for case, boxes in contract.BOXES.items():
        for crowd in (False, True):
            targets = [contract.targets_of(boxes, crowd=crowd)] * 2
            losses = detector(detectors.features(), targets)
            assert list(losses) == names
            assert all(bool(loss.isfinite()) for loss in losses.values()), (case, losses)
            detector.zero_grad()
            total(losses).backward()
            grads = [p.grad for p in detector.parameters() if p.grad is not None]
            assert all(grad.isfinite().all() for grad in grads), case
            if crowd or not boxes:
                assert losses["box"].item() == 0.0


@pytest.mark.parametrize(("kind", "neck"), MATRIX)
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_one_image_of_32_pixels(detectors: Any, kind: str, neck: str, norm: str) -> None:
    detector = detectors.detector(kind, neck, norm=norm)
    features = detectors.features(32, 32, images=1)
    targets = [detectors.targets([[4.0, 4.0, 20.0, 20.0]], size_hw=(32, 32))]
    losses = detector(features, targets)
    total(losses).backward()
    assert bool(total(losses).isfinite())
    grads = [p.grad for p in detector.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)
    detections = detector.eval().detect(features, sizes_hw=[(32, 32)], image_ids=[4])[0]
    assert bool(detections.boxes.isfinite().all())
    assert detections.image_id == 4


@pytest.mark.parametrize("kind", ["faster_rcnn", "cascade_rcnn"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_no_proposals_at_all(detectors: Any, kind: str, norm: str) -> None:
    """An image clipped to nothing and without ground truth leaves no RoI: losses without a NaN."""
    detector = detectors.detector(kind, norm=norm)
    nothing = detectors.targets([], size_hw=(0, 0))
    losses = detector(detectors.features(), [nothing, nothing])
    total(losses).backward()
    assert losses["class"].item() == 0.0
    assert losses["box"].item() == 0.0
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)
    assert all(bool(buffer.isfinite().all()) for buffer in detector.buffers())
    both = detector.eval().detect(detectors.features(), sizes_hw=[(0, 0)] * 2, image_ids=[1, 2])
    assert [len(detections) for detections in both] == [0, 0]


@pytest.mark.parametrize(("kind", "neck"), MATRIX)
def test_adapters_start_from_the_plain_detector(detectors: Any, kind: str, neck: str) -> None:
    plain = detectors.detector(kind, neck).eval()
    adapted = detectors.detector(kind, neck, adapters={"kind": "bottleneck", "ratio": 0.5}).eval()
    adapted.load_state_dict(plain.state_dict(), strict=False)
    features = detectors.features()
    for one, other in zip(
        plain.neck(plain.adapters(features)).values(),
        adapted.neck(adapted.adapters(features)).values(),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_scored_as_each_image_alone(detectors: Any, kind: str) -> None:
    detector = detectors.detector(kind, postprocess={"score_threshold": 0.0}).eval()
    for name, parameter in detector.named_parameters():
        if "logits.weight" in name or "objectness.weight" in name:
            torch.nn.init.normal_(parameter, std=0.5)  # no two scores alike
    features = detectors.features()
    sizes = [(64, 96), (50, 80)]
    together = detector.detect(features, sizes_hw=sizes, image_ids=[1, 2])
    for n in range(2):
        maps_of_one = {name: maps[n : n + 1] for name, maps in features.items()}
        alone = detector.detect(maps_of_one, sizes_hw=[sizes[n]], image_ids=[n + 1])[0]
        torch.testing.assert_close(together[n].boxes, alone.boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(together[n].scores, alone.scores, rtol=1e-4, atol=1e-5)
        assert torch.equal(together[n].labels, alone.labels)
        assert bool((alone.boxes[:, 2] <= sizes[n][1]).all())

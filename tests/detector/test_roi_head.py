from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from cachedet.config.detector import Norm
from cachedet.detector.layers import LayerStyle
from cachedet.detector.roi_head import RoIHead, class_deltas


def make_head(style: LayerStyle, **changes: Any) -> RoIHead:
    towers = {"num_convs": 4, "conv_channels": 256, "num_fcs": 2, "fc_channels": 1024}
    return RoIHead(style=style, **(towers | {"class_agnostic": False} | changes))


def test_equals_torchvisions_light_head_on_the_same_weights() -> None:
    """Two fully connected layers; torchvision counts the background first, we count it last."""
    ours = make_head(
        LayerStyle(norm="none", activation="relu"),
        in_channels=5,
        resolution=7,
        num_classes=3,
        num_convs=0,
        fc_channels=12,
    )
    mlp, predictor = TwoMLPHead(5 * 49, 12), FastRCNNPredictor(12, 4)
    mlp.fc6.load_state_dict(ours.fcs[0].linear.state_dict())
    mlp.fc7.load_state_dict(ours.fcs[1].linear.state_dict())
    order = [3, 0, 1, 2]
    predictor.cls_score.weight.data = ours.class_logits.weight.data[order]
    predictor.cls_score.bias.data = ours.class_logits.bias.data[order]
    predictor.bbox_pred.weight.data[4:] = ours.box_deltas.weight.data
    predictor.bbox_pred.bias.data[4:] = ours.box_deltas.bias.data
    cells = torch.randn(6, 5, 7, 7)
    logits, deltas = ours(cells)
    their_logits, their_deltas = predictor(mlp(cells))
    torch.testing.assert_close(logits[:, order], their_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(deltas.flatten(1), their_deltas[:, 4:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("rois", [0, 1, 5])
def test_any_number_of_rois(norm: Norm, rois: int) -> None:
    head = make_head(
        LayerStyle(norm=norm, activation="silu", separable=True),
        in_channels=4,
        resolution=3,
        num_classes=2,
        class_agnostic=True,
        num_convs=2,
        conv_channels=8,
        fc_channels=8,
    )
    logits, deltas = head(torch.randn(rois, 4, 3, 3))
    assert logits.shape == (rois, 3)
    assert deltas.shape == (rois, 1, 4)
    assert bool(logits.isfinite().all())
    assert all(bool(buffer.isfinite().all()) for buffer in head.buffers())


def test_paper_size() -> None:
    """PAPER 2.5: each cascade stage owns 16.36 M parameters."""
    style = LayerStyle(norm="batch", activation="relu")
    head = make_head(style, in_channels=256, resolution=7, num_classes=90, class_agnostic=True)
    assert sum(p.numel() for p in head.parameters()) == pytest.approx(16.36e6, rel=1e-3)


def test_own_deltas() -> None:
    deltas = torch.arange(24.0).view(2, 3, 4)
    assert class_deltas(deltas, torch.tensor([2, 0])).tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert torch.equal(class_deltas(deltas, torch.tensor([3, -1])), deltas[[0, 1], [2, 0]])
    assert torch.equal(class_deltas(deltas[:, :1], torch.tensor([2, 0])), deltas[:, 0])

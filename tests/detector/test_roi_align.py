from __future__ import annotations

from functools import partial

import pytest
import torch
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from cachedet.detector.roi_align import PyramidRoIAlign


def make_pyramid(strides: tuple[int, ...], side: int) -> dict[str, torch.Tensor]:
    return {f"P{n}": torch.randn(2, 5, side // s, side // s) for n, s in enumerate(strides)}


def random_boxes(count: int) -> torch.Tensor:
    corners = torch.rand(count, 2) * 200
    return torch.cat([corners, corners + 2 + torch.rand(count, 2) * 800], dim=1)


@pytest.mark.parametrize(("strides", "finest"), [((4, 8, 16, 32), 2), ((8, 16, 32, 64, 128), 3)])
def test_levels_equal_torchvisions(strides: tuple[int, ...], finest: int) -> None:
    boxes = random_boxes(200)
    mapper = LevelMapper(finest, finest + len(strides) - 1)
    found = PyramidRoIAlign(strides=strides).levels_of(boxes)
    assert torch.equal(found, mapper([boxes]))
    assert len(found.unique()) > 2


def test_levels_by_hand() -> None:
    align = PyramidRoIAlign(strides=(8, 16, 32))
    sides = torch.tensor([1.0, 111.9, 112.1, 223.9, 224.1, 448.1, 5000.0, 0.0])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], dim=1)
    assert align.levels_of(boxes).tolist() == [0, 0, 0, 0, 1, 2, 2, 0]
    vit = PyramidRoIAlign(strides=(7, 14, 28, 56))  # counted like 8, 16, 32, 64
    assert vit.levels_of(boxes).tolist() == [0, 0, 0, 0, 1, 2, 3, 0]


def test_cells_equal_torchvisions_op_on_the_level_of_each_box() -> None:
    strides = (8, 16, 32)
    pyramid, boxes = make_pyramid(strides, 512), random_boxes(60).clamp(max=512)
    align = PyramidRoIAlign(strides=strides)
    image = torch.tensor([0] * 25 + [1] * 35)
    found = align(pyramid, boxes, image)
    for place, stride in enumerate(strides):
        own = align.levels_of(boxes) == place
        assert bool(own.any())
        rois = torch.cat([image[own, None].float(), boxes[own]], dim=1)
        direct = roi_align(
            pyramid[f"P{place}"], rois, 7, 1 / stride, sampling_ratio=1, aligned=True
        )
        torch.testing.assert_close(found[own], direct, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("resolution", [1, 7, 14])
def test_cells_and_gradients_equal_those_of_torchvisions_op(resolution: int) -> None:
    """In float64, of boxes within the image, across its border, far outside and without area."""
    strides = (8, 16, 32)
    pyramid = {name: level.double() for name, level in make_pyramid(strides, 512).items()}
    boxes = torch.cat([random_boxes(60), random_boxes(60) - 300, random_boxes(20) + 900]).double()
    boxes[:3, 2:] = boxes[:3, :2]
    image = torch.arange(len(boxes)) % 2
    align = PyramidRoIAlign(strides=strides, resolution=resolution)
    cells, gradients = [], []
    for pooling in (align.over, lambda levels: partial(align._pool, list(levels.values()))):
        for level in pyramid.values():
            level.requires_grad_().grad = None
        pool = pooling(pyramid)
        cells.append(pool(boxes, image))
        (cells[-1] * torch.linspace(-1, 1, cells[-1].numel()).view_as(cells[-1])).sum().backward()
        gradients.append([level.grad for level in pyramid.values()])
    torch.testing.assert_close(*cells, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_order_and_gradient() -> None:
    """Cells come in the order of the boxes, and every level that was pooled from gets gradient."""
    pyramid = {f"P{n}": torch.full((1, 2, 64 >> n, 64 >> n), float(n)) for n in range(3)}
    for level in pyramid.values():
        level.requires_grad_()
    align = PyramidRoIAlign(strides=(8, 16, 32), resolution=3)
    sides = torch.tensor([300.0, 40.0, 470.0, 20.0])
    boxes = torch.stack([torch.zeros(4) + 5, torch.zeros(4) + 5, sides + 5, sides + 5], dim=1)
    cells = align(pyramid, boxes, torch.zeros(4, dtype=torch.int64))
    assert cells.mean(dim=(1, 2, 3)).tolist() == [1.0, 0.0, 2.0, 0.0]
    cells.sum().backward()
    assert all(level.grad is not None for level in pyramid.values())
    assert all(bool(level.grad.any()) for level in pyramid.values() if level.grad is not None)


def test_levels_with_a_gap() -> None:
    align = PyramidRoIAlign(strides=(8, 32, 64))  # 112 px belong to 8 still, 448 to 32
    sides = torch.tensor([112.0, 225.0, 447.0, 449.0, 900.0])
    boxes = torch.stack([torch.zeros(5), torch.zeros(5), sides, sides], dim=1)
    assert align.levels_of(boxes).tolist() == [0, 0, 0, 1, 2]


def test_boxes_that_are_no_numbers_keep_their_place() -> None:
    align, pyramid = PyramidRoIAlign(strides=(8, 16)), make_pyramid((8, 16), 64)
    boxes = torch.tensor([[0.0, 0, 20, 20], [float("nan")] * 4, [0, 0, float("inf"), 9]])
    cells = align(pyramid, boxes, torch.zeros(3, dtype=torch.int64))
    assert cells.shape == (3, 5, 7, 7)
    assert torch.equal(cells[:1], align(pyramid, boxes[:1], torch.zeros(1, dtype=torch.int64)))


def test_cells_of_bf16_maps_come_from_exact_corners() -> None:
    """bf16 knows every eighth pixel beyond 1024 only."""
    ramp = torch.arange(160.0).expand(1, 1, 8, 160)
    align = PyramidRoIAlign(strides=(8,), resolution=1)
    box = torch.tensor([[1003.0, 10.0, 1019.0, 26.0]])
    image = torch.zeros(1, dtype=torch.int64)
    exact = align({"P3": ramp}, box, image)
    found = align({"P3": ramp.bfloat16()}, box, image)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=2e-3, atol=0)


def test_no_rois() -> None:
    pyramid = make_pyramid((8, 16), 64)
    align = PyramidRoIAlign(strides=(8, 16))
    assert align(pyramid, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).shape == (
        0,
        5,
        7,
        7,
    )

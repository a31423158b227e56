from __future__ import annotations

from typing import Any

import torch

from cachedet.detector.anchors import AnchorGenerator


def make_generator(**changes: Any) -> AnchorGenerator:
    values = {"strides": (8,), "size_factor": 4.0, "scales_per_octave": 3}
    return AnchorGenerator(**({"aspect_ratios": (0.5, 1.0, 2.0)} | values | changes))


def test_anchors_by_hand() -> None:
    generator = make_generator(
        strides=(8, 14), size_factor=2.0, scales_per_octave=1, aspect_ratios=(1.0, 4.0)
    )
    anchors = generator({"P3": torch.zeros(1, 1, 1, 2), "P4": torch.zeros(1, 1, 1, 1)})
    expected = [
        [-4.0, -4.0, 12.0, 12.0],
        [0.0, -12.0, 8.0, 20.0],  # four times as high as wide, the same area
        [4.0, -4.0, 20.0, 12.0],
        [8.0, -12.0, 16.0, 20.0],
        [-7.0, -7.0, 21.0, 21.0],
        [0.0, -21.0, 14.0, 35.0],
    ]
    torch.testing.assert_close(anchors, torch.tensor(expected))


def test_paper_anchors() -> None:
    generator = make_generator()
    assert generator.num_anchors == 9
    anchors = generator({"P3": torch.zeros(1, 1, 2, 3)})
    sizes = anchors[:, 2:] - anchors[:, :2]
    assert len(anchors) == 54
    areas = sizes.prod(dim=1)[:9].sqrt()
    torch.testing.assert_close(
        areas[::3], torch.tensor([32.0, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)])
    )
    torch.testing.assert_close((sizes[:3, 1] / sizes[:3, 0]), torch.tensor([0.5, 1.0, 2.0]))


def test_few_shapes_are_kept() -> None:
    generator = make_generator()
    first = generator({"P3": torch.zeros(1, 1, 2, 3)})
    assert generator({"P3": torch.zeros(4, 7, 2, 3)}) is first
    for width in range(1, 80):
        generator({"P3": torch.zeros(1, 1, 1, width)})
    assert len(generator._cache) <= 64

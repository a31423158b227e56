from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor

from cachedet.config.detector import DetectorConfig, describe_detector
from cachedet.detector.build import build_detector, choose_levels
from cachedet.detector.layers import LayerStyle
from cachedet.detector.tap_pyramid import TapPyramid
from cachedet.errors import ConfigError
from cachedet.model import measure_model
from cachedet.structures import FeatureSpec, LevelSpec

JOINS = ("concatenate", "weighted")
GOLDEN = Path(__file__).with_name("golden_taps.json")


def make_spec(*blocks: int, stride: int = 16, channels: int = 6) -> FeatureSpec:
    return FeatureSpec(
        tuple(
            LevelSpec(name=f"L{block}", channels=channels, stride=stride, tap=True)
            for block in blocks
        )
    )


SPEC = make_spec(1, 2, 4)


def make_neck(spec: FeatureSpec = SPEC, *, norm: Any = "group", **changes: Any) -> TapPyramid:
    style = LayerStyle(norm=norm, activation="relu")
    values = {"channels": 16, "num_levels": 4, "join": "concatenate", "style": style}
    return TapPyramid(spec, **(values | changes))


def taps_of_size(*size_hw: int, images: int = 2, spec: FeatureSpec = SPEC) -> dict[str, Tensor]:
    return {level.name: torch.randn(images, level.channels, *size_hw) for level in spec}


def detector_config(head: str = "retinanet", **neck: Any) -> DetectorConfig:
    adapter: TypeAdapter[DetectorConfig] = TypeAdapter(DetectorConfig)
    values: dict[str, Any] = {"kind": head, "neck": {"kind": "tap_pyramid", "channels": 16} | neck}
    if head == "retinanet":
        values["num_convs"] = 1
    else:
        values["rpn"] = {"samples": 32, "train_post_nms": 40, "test_post_nms": 30}
        values["roi_head"] = {"samples": 16, "num_convs": 1, "conv_channels": 8, "fc_channels": 24}
    return adapter.validate_python(values)


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize(
    ("stride", "num_levels", "strides"),
    [(14, 4, [7, 14, 28, 56]), (16, 4, [8, 16, 32, 64]), (16, 5, [8, 16, 32, 64, 128])],
)
def test_strides_are_exact(join: str, stride: int, num_levels: int, strides: list[int]) -> None:
    neck = make_neck(make_spec(3, 6, stride=stride), num_levels=num_levels, join=join)
    assert [level.stride for level in neck.spec] == strides
    assert neck.spec.names == ("P3", "P4", "P5", "P6", "P7")[:num_levels]


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [
        ((8, 12), [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]),
        ((9, 7), [(18, 14), (9, 7), (5, 4), (3, 2), (2, 1)]),
        ((1, 1), [(2, 2), (1, 1), (1, 1), (1, 1), (1, 1)]),
    ],
)
def test_shapes(
    size_hw: tuple[int, int], expected: list[tuple[int, int]], norm: str, join: str
) -> None:
    neck = make_neck(num_levels=5, norm=norm, join=join)
    found = neck(taps_of_size(*size_hw, images=1) | {"C5": torch.randn(1)})
    assert [(level.shape[1], *level.shape[-2:]) for level in found.values()] == [
        (16, *size) for size in expected
    ]
    assert all(level.isfinite().all() for level in found.values())


def pooled(level: Tensor, factor: int) -> Tensor:
    """The largest of each window, also of those that reach over the edge."""
    height, width = (-(-side // factor) * factor for side in level.shape[-2:])
    walled = F.pad(
        level, (0, width - level.shape[-1], 0, height - level.shape[-2]), value=-torch.inf
    )
    return walled.unfold(2, factor, factor).unfold(3, factor, factor).amax(dim=(-2, -1))


@pytest.mark.parametrize("join", JOINS)
def test_against_plain_code(join: str) -> None:
    """In float64; each tap has its own part of the 1x1 kernel, or its share of a mean."""
    neck = make_neck(channels=4, norm="none", join=join).double()
    taps = {name: level.double() for name, level in taps_of_size(5, 7).items()}
    if join == "weighted":
        torch.nn.init.normal_(neck.join.logits)
    joined = []
    for place in range(4):
        if join == "weighted":
            reduce = neck.join.reductions[place][0]
            powers = neck.join.logits[place].exp()
            mean = sum(p / powers.sum() * taps[n] for p, n in zip(powers, SPEC.names, strict=True))
            mixed = torch.einsum("oc,nchw->nohw", reduce.weight[..., 0, 0], mean)
        else:
            reduce = neck.join.reduce[0]
            parts = reduce.weight[..., 0, 0].split(6, dim=1)
            mixed = sum(
                torch.einsum("oc,nchw->nohw", part, taps[name])
                for part, name in zip(parts, SPEC.names, strict=True)
            )
        joined.append((mixed + reduce.bias[:, None, None]).clamp(min=0))
    doubled = torch.zeros(2, 4, 10, 14, dtype=torch.float64)
    for y in range(2):
        for x in range(2):
            moved = torch.einsum("nchw,co->nohw", joined[0], neck.upsample.weight[:, :, y, x])
            doubled[:, :, y::2, x::2] = moved + neck.upsample.bias[:, None, None]
    at_strides = (doubled, joined[1], pooled(joined[2], 2), pooled(joined[3], 4))
    for mine, level, block in zip(neck(taps).values(), at_strides, neck.blocks, strict=True):
        expected = F.conv2d(level, block[0].weight, block[0].bias, padding=1)
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-11)


def test_weights_are_equal_at_first_and_of_each_level() -> None:
    neck = make_neck(join="weighted")
    assert neck.join.logits.shape == (4, 3)
    torch.testing.assert_close(
        neck.join.logits.softmax(dim=1), torch.full((4, 3), 1 / 3), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_gradient_reaches_every_parameter(norm: str, join: str) -> None:
    neck = make_neck(norm=norm, join=join)
    found = neck(taps_of_size(9, 7))
    torch.stack(
        [(level * torch.randn_like(level)).sum() for level in found.values()]
    ).sum().backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("neck", "names"),
    [
        ({}, ("P3", "P4", "P5", "P6")),
        ({"num_levels": 5}, ("P3", "P4", "P5", "P6", "P7")),
        ({"top": {"kind": "fpn", "channels": 24}}, ("P3", "P4", "P5", "P6", "P7")),
        ({"top": {"kind": "nasfpn", "channels": 24, "repeats": 1}}, ("P3", "P4", "P5", "P6", "P7")),
        ({"join": "weighted", "top": {"kind": "fpn", "num_levels": 4}}, ("P3", "P4", "P5", "P6")),
    ],
)
@pytest.mark.parametrize("kind", ["retinanet", "faster_rcnn", "cascade_rcnn"])
def test_detectors_stand_on_it(contract: Any, kind: str, neck: dict[str, Any], names: Any) -> None:
    """The whole contract of a detector for one kind, a step for the others."""
    config = detector_config(kind, **neck)
    detector = build_detector(config, spec=SPEC, num_classes=3)
    assert detector.neck.spec.names == names
    if kind == "retinanet" and names == ("P3", "P4", "P5", "P6"):
        contract.check_detector(
            lambda spec, num_classes: build_detector(config, spec=spec, num_classes=num_classes),
            spec=SPEC,
        )
    losses = detector(contract.features_of(SPEC), [contract.targets_of([[4.0, 4, 40, 44]])] * 2)
    torch.stack(list(losses.values())).sum().backward()
    assert all(bool(loss.isfinite()) for loss in losses.values())
    top = f" with {neck['top']['kind']}" if "top" in neck else ""
    assert describe_detector(config) == f"{kind}, tap_pyramid{top}"


@pytest.mark.parametrize("join", JOINS)
def test_costs_by_hand(join: str) -> None:
    """ViT-S with four taps at 512 pixels: every convolution, cell by cell, and every weight."""
    spec, cells = make_spec(3, 6, 9, 12, channels=384), 32 * 32
    cost = measure_model(
        detector_config(channels=64, join=join), features=spec, num_classes=3, size_hw=(512, 512)
    )
    neck = cost.parts[0]
    assert neck.name == "neck"
    reduced = 4 * 384 * 64  # four maps side by side, or four means: as many products
    upsampled, wide = 4 * 64 * 64, 9 * 64 * 64
    of_levels = cells * 4 + cells + cells // 4 + cells // 16
    assert neck.forward_flops == 2 * (cells * (reduced + upsampled) + of_levels * wide)
    norms = 2 * 64 * (5 if join == "concatenate" else 8)
    weights = 0 if join == "concatenate" else 4 * 4
    assert neck.parameters == reduced + upsampled + 64 + 4 * wide + norms + weights


def golden_losses(join: str, top: dict[str, Any] | None) -> list[list[float]]:
    """Of three steps of a RetinaNet at a fixed seed."""
    generator = torch.Generator().manual_seed(5)
    features = {
        level.name: torch.randn(2, level.channels, 4, 6, generator=generator) for level in SPEC
    }
    torch.manual_seed(3)
    detector: Any = build_detector(detector_config(join=join, top=top), spec=SPEC, num_classes=3)
    from_contract = detector_targets()
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01)
    rows = []
    for _ in range(3):
        losses = detector(features, from_contract)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        rows.append([loss.item() for loss in losses.values()])
    return rows


def detector_targets() -> list[Any]:
    from cachedet.structures import Targets

    boxes = torch.tensor([[4.0, 4.0, 40.0, 44.0], [50.0, 10.0, 90.0, 60.0]])
    return [
        Targets(
            image_id=n,
            size_hw=(64, 96),
            boxes=boxes,
            labels=torch.tensor([2, 0]),
            crowd=torch.zeros(2, dtype=torch.bool),
        )
        for n in range(2)
    ]


GOLDEN_CASES = {
    "concatenate": ("concatenate", None),
    "weighted": ("weighted", None),
    "concatenate nasfpn": ("concatenate", {"kind": "nasfpn", "channels": 16, "repeats": 1}),
}


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden_losses(case: str) -> None:
    """Recorded by `python tests/detector/test_tap_pyramid.py`; a change says why."""
    expected = json.loads(GOLDEN.read_text())[case]
    computed = golden_losses(*GOLDEN_CASES[case])
    torch.testing.assert_close(torch.tensor(computed), torch.tensor(expected), rtol=1e-3, atol=1e-6)


def test_which_levels_are_joined() -> None:
    """All taps, whatever the neck; of states of a ViT all maps, for this neck alone."""
    states = FeatureSpec(
        (
            LevelSpec(name="L2", channels=6, stride=16),
            LevelSpec(name="L2_prefix", channels=6, stride=16, tokens=1),
            LevelSpec(name="C4", channels=6, stride=16),
        )
    )
    token = LevelSpec(name="L4_class", channels=6, stride=16, tokens=1, tap=True)
    config = detector_config()
    assert choose_levels(config, states).names == ("L2", "C4")
    assert choose_levels(config, FeatureSpec((*SPEC, token))).names == SPEC.names
    simple: Any = config.model_copy(update={"neck": detector_config(kind="simple").neck})
    assert choose_levels(simple.model_copy(update={"levels": ("L4",)}), SPEC).names == ("L4",)


@pytest.mark.parametrize(
    ("neck", "spec", "message"),
    [
        ({"kind": "fpn"}, SPEC, "'fpn': levels of strides 16 and 16 .* with the neck tap_pyramid"),
        ({"kind": "fpn"}, make_spec(*range(1, 9)), "'fpn': levels of strides .* tap_pyramid"),
        (
            {"kind": "nasfpn"},
            SPEC,
            "'nasfpn': NASFPN takes .* maps of one stride with the neck tap",
        ),
        ({"kind": "simple"}, SPEC, "'simple': .* or join them with the neck tap_pyramid"),
        (
            {},
            FeatureSpec(
                (
                    LevelSpec(name="C3", channels=4, stride=8),
                    LevelSpec(name="C4", channels=6, stride=16),
                )
            ),
            r"'tap_pyramid': TapPyramid joins maps of one stride, got C3 \(4 channels, stride 8\)",
        ),
        ({}, make_spec(1, 2, stride=15), "'tap_pyramid': .* must be even, got L1"),
        (
            {"join": "weighted"},
            FeatureSpec((*make_spec(1), *make_spec(2, channels=8))),
            "'tap_pyramid': TapPyramid weighs maps of as many channels each, got L1",
        ),
        (
            {"top": {"kind": "fpn", "num_levels": 3}},
            SPEC,
            "'tap_pyramid': num_levels must be at le",
        ),
    ],
)
def test_necks_that_do_not_fit_their_levels(
    neck: dict[str, Any], spec: FeatureSpec, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"detector.neck {message}"):
        build_detector(detector_config(**neck), spec=spec, num_classes=3)


if __name__ == "__main__":
    recorded = {case: golden_losses(*values) for case, values in GOLDEN_CASES.items()}
    GOLDEN.write_text(json.dumps(recorded, indent=1))

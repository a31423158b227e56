"""Sizes and costs of the shipped configs, against the paper's and against hand counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from cachedet.backbone.frozen import load_backbone
from cachedet.backbone.split import make_stages
from cachedet.config.run import load_train_config
from cachedet.errors import BackboneError, ConfigError, InputError
from cachedet.model import ModelCost, measure_config, measure_model, parse_features, parse_size

CONFIGS = Path(__file__).parents[1] / "configs"
RESNET = "C3:512:8,C4:1024:16,C5:2048:32"


def cost_of(
    name: str,
    *,
    features: str = RESNET,
    image_size: str = "256",
    overrides: tuple[str, ...] = (),
    num_classes: int = 90,
) -> ModelCost:
    config = load_train_config(CONFIGS / name, overrides)
    return measure_model(
        config.detector,
        features=parse_features(features),
        num_classes=num_classes,
        size_hw=parse_size(image_size),
    )


@pytest.mark.parametrize(
    ("name", "features", "millions", "tolerance"),
    [
        ("cascade_rcnn_nasfpn.yaml", RESNET, 71.27, 1e-3),
        ("faster_rcnn_nasfpn.yaml", RESNET, 38.92, 1e-3),
        ("faster_rcnn_fpn.yaml", "C2:256:4," + RESNET, 21.26, 1e-3),
    ],
)
def test_trainable_parameters_as_the_paper_counts_them(
    name: str, features: str, millions: float, tolerance: float
) -> None:
    """PAPER 1.4 [I], counted from its public configs: a ResNet-101's channels, 91 outputs."""
    cost = cost_of(name, features=features)
    assert cost.total.parameters / 1e6 == pytest.approx(millions, rel=tolerance)


def test_flops_by_hand() -> None:
    """RetinaNet's head: every convolution's multiplications and additions, cell by cell."""
    cost = cost_of("retinanet_fpn.yaml", image_size="256")
    cells = 32**2 + 16**2 + 8**2 + 4**2 + 2**2
    tower = 2 * 4 * 256 * 256 * 9
    predictors = 256 * 9 * (9 * 90 + 9 * 4)
    by_name = {part.name: part for part in cost.parts}
    assert by_name["head"].forward_flops == 2 * cells * (tower + predictors)
    assert by_name["head"].step_flops == 3 * by_name["head"].forward_flops
    assert by_name["neck"].step_flops < 3 * by_name["neck"].forward_flops  # no gradient to features


def test_parts_of_a_cascade_and_its_adapters() -> None:
    plain = cost_of("cascade_rcnn_fpn.yaml")
    assert [part.name for part in plain.parts] == [
        "neck", "rpn", "roi head 1", "roi head 2", "roi head 3",
    ]  # fmt: skip
    adapted = cost_of("cascade_rcnn_fpn.yaml", overrides=("detector.adapters={kind: pointwise}",))
    adapters = adapted.parts[0]
    assert adapters.name == "adapters"
    assert adapters.parameters == sum(c * c + c for c in (512, 1024, 2048))
    cells = {512: 32**2, 1024: 16**2, 2048: 8**2}
    assert adapters.forward_flops == 2 * sum(c * c * n for c, n in cells.items())
    # the neck now hands gradient on to the adapters
    assert adapted.parts[1].step_flops > plain.parts[0].step_flops
    assert adapted.parts[1].step_flops == 3 * adapted.parts[1].forward_flops


def test_a_mask_head_is_a_part() -> None:
    """4 convolutions and their norms, the transposed one, and 90 maps of logits."""
    cost = cost_of("cascade_rcnn_nasfpn.yaml", overrides=("detector.mask_head={}",))
    assert cost.parts[-1].name == "mask head"
    convs = 4 * (256 * 256 * 9 + 2 * 256) + 256 * 256 * 4 + 256
    assert cost.parts[-1].parameters == convs + 256 * 90 + 90


def test_odd_sizes_are_padded_as_the_cache_pads_them() -> None:
    assert cost_of("retinanet_fpn_tiny.yaml", image_size="250").size_hw == (256, 256)
    vit = cost_of(
        "faster_rcnn_fpn_tiny.yaml",
        features="C4:64:14",
        image_size="100x200",
        overrides=("detector.neck={kind: simple, channels: 32}",),
    )
    assert vit.size_hw == (112, 210)


def test_features_that_make_no_sense() -> None:
    with pytest.raises(InputError, match=r"NAME:CHANNELS:STRIDE.*got 'C3:512'"):
        parse_features("C3:512")
    with pytest.raises(InputError, match="such as C3:512:8, got 'C3:x:8'"):
        parse_features("C3:x:8")
    with pytest.raises(InputError, match="ordered fine to coarse"):
        parse_features("C4:1:16,C3:1:8")
    for text in ("big", "0", "1x2x3", "12x"):
        with pytest.raises(InputError, match=f"such as 288x384, got '{text}'"):
            parse_size(text)
    with pytest.raises(ConfigError, match="asks for 'C5', the store holds C3"):
        cost_of("faster_rcnn_nasfpn.yaml", features="C3:8:8,C4:8:16")
    with pytest.raises(ConfigError, match=r"detector.neck 'fpn': num_levels must be at least"):
        cost_of("retinanet_fpn_tiny.yaml", overrides=("detector.neck.num_levels=2",))


def cost_with_stages(backbone: str | None, *overrides: str) -> ModelCost:
    config = load_train_config(CONFIGS / "retinanet_fpn_tiny.yaml", ("freeze_at=C4", *overrides))
    return measure_config(
        config,
        features=parse_features(RESNET),
        backbone=backbone,
        num_classes=3,
        size_hw=(256, 256),
    )


def test_stages_that_are_trained_count() -> None:
    """Their weights, but for frozen batch norms; the neck then hands gradient on to them."""
    plain = cost_with_stages("test_resnet", "freeze_at=null")
    cost = cost_with_stages("test_resnet")
    stages, heads = cost.parts[0], cost.parts[1:]
    assert stages.name == "stages behind C4"
    spec = load_backbone("test_resnet", weights="none").spec
    network = make_stages("test_resnet", spec=spec, cut="C4", image_size=256)
    norms = sum(2 * m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    every = sum(parameter.numel() for parameter in network.parameters())
    assert stages.parameters == every - norms
    assert cost_with_stages("test_resnet", "stages.batch_norm=trained").parts[0].parameters == every
    assert 2 * stages.forward_flops < stages.step_flops <= 3 * stages.forward_flops
    assert [part.parameters for part in heads] == [part.parameters for part in plain.parts]
    assert heads[0].step_flops > plain.parts[0].step_flops
    assert cost.left_out == ""


def test_stages_of_no_known_backbone_are_left_out_and_said() -> None:
    cost = cost_with_stages(None)
    assert cost.parts == cost_of("retinanet_fpn_tiny.yaml", num_classes=3).parts
    assert cost.to_json()["left_out"].startswith("the backbone's stages behind C4, which freeze_at")
    with pytest.raises(BackboneError, match="test_vit cannot be cut"):
        cost_with_stages("test_vit")


def call(*arguments: object) -> Any:
    from typer.testing import CliRunner

    from cachedet.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command() -> None:
    config = CONFIGS / "faster_rcnn_fpn_tiny.yaml"
    shown = call("model", config, "--image-size", 128)
    assert shown.exit_code == 0
    assert "roi head 1" in shown.output
    assert "100%" in shown.output
    printed = json.loads(call("model", config, "--num-classes", 3, "--json").stdout)
    assert printed["num_classes"] == 3
    total = sum(part["parameters"] for part in printed["parts"])
    assert printed["total"]["parameters"] == total
    wrong = call("model", config, "--features", "C3")
    assert wrong.exit_code == 1
    both = call("model", config, "--features", RESNET, "--backbone", "test_resnet")
    assert "--features and --backbone both name the levels; give one" in both.stderr
    noted = call("model", config, "--set", "freeze_at=C4").output
    assert "left out: the backbone's stages behind C4" in noted
    counted = call("model", config, "--set", "freeze_at=C4", "--backbone", "test_resnet").output
    assert "stages behind C4" in counted
    assert "left out" not in counted

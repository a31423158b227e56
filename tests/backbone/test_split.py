from __future__ import annotations

import pytest
import torch

from cachedet.backbone.custom import wrap_backbone
from cachedet.backbone.frozen import load_backbone
from cachedet.backbone.split import split_backbone
from cachedet.errors import BackboneError
from cachedet.structures import LevelSpec

FAMILIES = (
    "test_efficientnet", "mobilenetv3_small_050", "test_resnet", "resnext26ts", "regnetx_002",
    "test_convnext", "convnextv2_atto", "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_trunk_and_stages_are_the_whole(name: str) -> None:
    """Bit for bit, on rectangles, at every level where a network can be cut."""
    backbone = load_backbone(name, weights="none", image_size=128)
    images = torch.randn(2, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    whole = backbone(images)
    for cut in backbone.spec.names[:-1]:
        split = split_backbone(backbone, cut)
        with torch.no_grad():
            below = split.trunk(images)[-1]
            if backbone.is_nhwc:
                below = below.permute(0, 3, 1, 2)
            torch.testing.assert_close(below, whole[cut], rtol=0, atol=0)
            above = split.stages(whole[cut])
        assert tuple(above) == split.stages.spec.names
        for level, feature_map in above.items():
            torch.testing.assert_close(feature_map, whole[level], rtol=0, atol=0)


def test_each_tensor_is_in_one_part() -> None:
    backbone = load_backbone("test_resnet", weights="none")
    split = split_backbone(backbone, "C4")
    parts = [{id(p) for p in part.parameters()} for part in (split.trunk, split.stages)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {id(p) for p in backbone.model.parameters()}


@pytest.mark.parametrize(
    ("name", "cut", "message"),
    [
        ("test_resnet", "C5", "cannot be cut at 'C5': expected one of its levels but the last, C3"),
        ("test_resnet", "C9", "cannot be cut at 'C9'"),
        ("test_vit", "C4", "it gives C4 alone; a plain ViT is cut behind a block: L1 to L5"),
        ("xception41", "C4", "cannot be cut: timm gives its features through FeatureHookNet. Eff"),
        ("hrnet_w18_small", "C4", "families can be cut"),
    ],
)
def test_what_cannot_be_cut_is_named(name: str, cut: str, message: str) -> None:
    backbone = load_backbone(name, weights="none", image_size=64)
    with pytest.raises(BackboneError, match=message):
        split_backbone(backbone, cut)


def test_taps_cannot_be_cut() -> None:
    backbone = load_backbone("test_vit", weights="none", image_size=64, taps=2)
    with pytest.raises(BackboneError, match=r"behind taps: these are normed, .*--levels L8,C4"):
        split_backbone(backbone, "L3")


def test_a_wrapped_module_cannot_be_cut() -> None:
    levels = [
        LevelSpec(name="C3", channels=3, stride=8),
        LevelSpec(name="C4", channels=3, stride=16),
    ]
    pools = torch.nn.ModuleList([torch.nn.AvgPool2d(8), torch.nn.AvgPool2d(16)])

    class Pyramid(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [pool(images) for pool in pools]

    backbone = wrap_backbone(Pyramid(), name="pools", levels=levels)
    with pytest.raises(BackboneError, match="through _ListedMaps"):
        split_backbone(backbone, "C3")

from __future__ import annotations

import pytest
import timm
import torch

from cachedet.backbone.frozen import load_backbone
from cachedet.backbone.weights import digest_weights
from cachedet.errors import BackboneError
from cachedet.structures import FeatureSpec

OPENED = {  # name: (channels, strides)
    "test_resnet": ((48, 192, 96), (8, 16, 32)),
    "test_convnext": ((32, 48, 64), (8, 16, 32)),
    "swin_tiny_patch4_window7_224": ((192, 384, 768), (8, 16, 32)),
    "test_vit": ((64,), (16,)),
}


@pytest.mark.parametrize("name", OPENED)
def test_opens_any_family_on_rectangles(name: str) -> None:
    backbone = load_backbone(name, weights="none", image_size=128)
    channels, strides = OPENED[name]
    assert tuple(level.channels for level in backbone.spec) == channels
    assert tuple(level.stride for level in backbone.spec) == strides
    features = backbone(torch.randn(2, 3, 96, 128))
    assert {n: tuple(m.shape[1:]) for n, m in features.items()} == backbone.spec.map_shapes(
        (96, 128)
    )


@pytest.mark.parametrize("name", ["test_vit", "test_vit3"])
def test_the_map_of_a_plain_vit_is_taken_behind_its_last_block(name: str) -> None:
    backbone = load_backbone(name, weights="none", image_size=64, seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        whole = timm.create_model(name, img_size=64, dynamic_img_size=True).eval()
    whole.load_state_dict(backbone.model.model.state_dict(), strict=False)
    images = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        last = whole.forward_intermediates(images, indices=1, intermediates_only=True)[0]
    assert len(backbone.model.model.blocks) == len(whole.blocks)
    torch.testing.assert_close(backbone(images)["C4"], last, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_features_do_not_depend_on_the_batch(name: str) -> None:
    """Law L5."""
    backbone = load_backbone(name, weights="none", image_size=64)
    images = torch.randn(3, 3, 64, 64)
    together, alone = backbone(images), backbone(images[1:2])
    for level in backbone.spec.names:
        torch.testing.assert_close(together[level][1:2], alone[level], rtol=1e-5, atol=1e-5)


def test_stays_frozen() -> None:
    """Law L7: `.train()` and a forward leave every number as it was; no gradient is kept."""
    backbone = load_backbone("test_resnet", weights="none")
    parent = torch.nn.Sequential(backbone).train()
    features = backbone(torch.randn(2, 3, 64, 64))
    assert parent.training
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(level.requires_grad for level in features.values())
    assert digest_weights(backbone.model) == backbone.digest


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_in_bf16(name: str) -> None:
    """float32 maps, rounded as bf16 rounds, whatever autocast surrounds them."""
    exact = load_backbone(name, weights="none", image_size=64)
    rounded = load_backbone(name, weights="none", bf16=True, image_size=64)
    images = torch.randn(2, 3, 64, 64)
    assert exact.digest == rounded.digest
    assert rounded.spec != exact.spec
    assert load_backbone(name, weights="none", levels=rounded.spec, image_size=64).spec.bf16
    assert FeatureSpec.from_json(rounded.spec.to_json()) == rounded.spec
    with torch.autocast("cpu", enabled=False):
        maps = rounded(images)
    for level, true in exact(images).items():
        assert maps[level].dtype == torch.float32
        error = (maps[level] - true).norm() / true.norm()
        assert 1e-4 < error < 2e-2
        torch.testing.assert_close(rounded.in_float32()(images)[level], true, rtol=0, atol=0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(exact(images)[level], true, rtol=0, atol=0)


def test_levels_by_name() -> None:
    backbone = load_backbone("test_resnet", weights="none", levels=("C4", "C2"))
    assert backbone.spec.names == ("C2", "C4")
    with pytest.raises(BackboneError, match=r"no level 'C9'; it offers C1 \(stride 2\), C2"):
        load_backbone("test_resnet", weights="none", levels=("C9",))
    with pytest.raises(
        BackboneError, match=r"'L6'; it offers L1 to L5 \(behind that block\), C4 \("
    ):
        load_backbone("test_vit", weights="none", levels=("L6",))


def test_unknown_and_unsuitable_names() -> None:
    with pytest.raises(BackboneError, match="unknown backbone 'resnet5'; nearest: 'resnet50'"):
        load_backbone("resnet5")
    with pytest.raises(BackboneError, match="cannot be opened as a feature extractor"):
        load_backbone("mixer_b16_224", weights="none")


def test_a_hybrid_whose_patches_do_not_divide_its_map_is_one_message() -> None:
    with pytest.raises(BackboneError, match=r"112 pixels: .* multiple of its own size \(224\)"):
        load_backbone("vit_tiny_r_s16_p8_224", weights="none", image_size=112)


def test_tokens_come_with_their_map() -> None:
    with pytest.raises(
        BackboneError, match="L3_prefix holds the tokens that belong to L3: name L3"
    ):
        load_backbone("test_vit", weights="none", levels=("L3_prefix",), image_size=96)

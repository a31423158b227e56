"""Taps of tiny members of every family, against the networks as timm makes them."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from cachedet.backbone.frozen import load_backbone
from cachedet.backbone.split import freeze_trunk, stage_weights
from cachedet.backbone.taps import choose_blocks, taps_of
from cachedet.backbone.trained import TrainedBackbone
from cachedet.config.run import parse_taps
from cachedet.errors import BackboneError
from cachedet.structures import FeatureSpec

PREFIXES = {  # tokens in front of the patches
    "family_vit": 1,
    "family_deit": 2,
    "family_eva02": 1,
    "family_dinov2": 5,
    "family_dinov3": 5,
    "family_siglip2": 0,
    "family_pe_core": 1,
    "family_pe_spatial": 1,
}
UNNORMED = ("family_eva02", "family_pe_spatial")  # they have no norm behind their last block


def unmodified(name: str, like: nn.Module, *, image_size: int) -> Any:
    """The whole network as timm makes it, with the weights that `like` has of it."""
    whole = timm.create_model(name, img_size=image_size, dynamic_img_size=True).eval()
    missing, unexpected = whole.load_state_dict(like.state_dict(), strict=False)
    assert unexpected == []
    assert all(key.startswith(("head", "fc_norm", "attn_pool", "blocks.3.")) for key in missing)
    return whole


@torch.no_grad()
def by_timm(whole: Any, images: Tensor, indices: list[int]) -> list[tuple[Tensor, Tensor | None]]:
    """(map, prefix tokens) behind each block, with the norm of the last layer."""
    has_prefix = whole.num_prefix_tokens > 0
    found = whole.forward_intermediates(
        images, indices=indices, return_prefix_tokens=has_prefix, norm=True, intermediates_only=True
    )
    return list(found) if has_prefix else [(each, None) for each in found]


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize("name", PREFIXES)
def test_taps_are_those_of_the_unmodified_network(name: str) -> None:
    """On a rectangle; without class and register tokens."""
    backbone = load_backbone(name, weights="none", taps=2, image_size=84, seed=3)
    stride = backbone.spec.levels[0].stride
    assert [level.to_json() for level in backbone.spec] == [
        {"name": f"L{n}", "channels": 48, "stride": stride, "tap": True} for n in (2, 4)
    ]
    whole = unmodified(name, backbone.model.model, image_size=84)
    assert whole.num_prefix_tokens == PREFIXES[name]
    images = torch.randn(2, 3, 3 * stride, 5 * stride)
    found, expected = backbone(images), by_timm(whole, images, [1, 3])
    for mine, (theirs, _) in zip(found.values(), expected, strict=True):
        assert mine.shape == (2, 48, 3, 5)
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
        is_normed = bool((mine.mean(dim=1).abs() < 1e-4).all())  # a new norm shifts nothing
        assert is_normed is (name not in UNNORMED)
    assert not torch.equal(found["L2"], found["L4"])


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize("name", [n for n, tokens in PREFIXES.items() if tokens])
def test_the_class_token_behind_the_last_tap(name: str) -> None:
    backbone = load_backbone(name, weights="none", taps=[1, 3], global_token=True, image_size=84)
    stride = backbone.spec.levels[0].stride
    assert backbone.spec.names == ("L1", "L3", "L3_class")
    assert backbone.spec.pyramid.names == ("L1", "L3")
    images = torch.randn(2, 3, 2 * stride, 3 * stride)
    whole = unmodified(name, backbone.model.model, image_size=84)
    _, (last, prefix) = by_timm(whole, images, [0, 2])
    assert prefix is not None
    found = backbone(images)
    assert found["L3_class"].shape == (2, 48, 1, 1)
    torch.testing.assert_close(found["L3_class"][..., 0, 0], prefix[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["L3"], last, rtol=1e-5, atol=1e-5)
    again = load_backbone(name, weights="none", levels=backbone.spec, image_size=84)
    assert again.spec == backbone.spec


@pytest.mark.parametrize("depth", [4, 6, 12, 23, 24, 40])
def test_evenly_spaced_as_dinov3_takes_them(depth: int) -> None:
    """Its index, from 0, is m * n // 4 - 1: the last block is one of them."""
    blocks = choose_blocks(4, depth=depth, name="vit")
    assert [block - 1 for block in blocks] == [m * depth // 4 - 1 for m in (1, 2, 3, 4)]
    assert choose_blocks(1, depth=depth, name="vit") == (depth,)
    assert choose_blocks(depth, depth=depth, name="vit") == tuple(range(1, depth + 1))


def test_a_store_s_levels_open_the_same_network_again() -> None:
    """With its norm, which is one of the weights that have a digest."""
    first = load_backbone("test_vit", weights="none", taps=3, image_size=64)
    assert first.spec.names == ("L2", "L4", "L6")
    assert taps_of(first.spec) == (2, 4, 6)
    spec = FeatureSpec.from_json(first.spec.to_json())
    again = load_backbone("test_vit", weights="none", levels=spec, image_size=64)
    assert (again.spec, again.digest) == (first.spec, first.digest)
    images = torch.randn(1, 3, 32, 64)
    for mine, theirs in zip(again(images).values(), first(images).values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    states = load_backbone("test_vit", weights="none", levels=("L2", "C4"), image_size=64)
    assert taps_of(states.spec) is None
    reopened = load_backbone("test_vit", weights="none", levels=states.spec, image_size=64)
    assert reopened.spec == states.spec


def test_taps_do_not_depend_on_the_batch() -> None:
    """Law L5."""
    backbone = load_backbone("test_vit", weights="none", taps=2, image_size=64)
    images = torch.randn(3, 3, 64, 64)
    together, alone = backbone(images), backbone(images[1:2])
    for level in backbone.spec.names:
        torch.testing.assert_close(together[level][1:2], alone[level], rtol=1e-5, atol=1e-5)


def test_a_network_learns_through_its_taps() -> None:
    """Fine-tuning: the norm and the blocks in front of the last tap."""
    frozen = load_backbone("test_vit", weights="none", taps=[2, 4], image_size=64)
    network = TrainedBackbone(frozen, batch_norm="frozen")
    torch.stack([each.square().sum() for each in network(torch.randn(1, 3, 64, 64)).values()])[
        1
    ].backward()
    assert len(network.network.model.blocks) == 4
    idle = [name for name, p in network.named_parameters() if p.grad is None]
    assert idle == []


def test_nothing_behind_a_tap_can_be_trained() -> None:
    backbone = load_backbone("test_vit", weights="none", taps=2, image_size=64)
    for cut in (lambda: freeze_trunk(backbone, "L3"), lambda: stage_weights(backbone)):
        with pytest.raises(BackboneError, match="test_vit cannot be cut behind taps: these"):
            cut()
    with pytest.raises(BackboneError, match=r"behind L3 \(freeze_at\) no stages .* --levels L9,C4"):
        load_backbone("test_vit", weights="none", taps=2, cut="L3", image_size=64)


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize(
    ("name", "taps", "message"),
    [
        ("test_vit", 7, "test_vit has 6 blocks, counted from 1: taps cannot be 7"),
        ("test_vit", [2, 7, 9], "test_vit has 6 blocks, counted from 1: taps cannot be 7, 9"),
        ("test_resnet", 4, r"test_resnet has no taps, plain ViTs have them \(ViT, DeiT, BEiT"),
        ("family_swinv2", 4, "family_swinv2 has no taps, .* so leave --taps out"),
    ],
)
def test_taps_that_a_network_lacks(name: str, taps: Any, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load_backbone(name, weights="none", taps=taps, image_size=64)


@pytest.mark.usefixtures("families")
def test_a_class_token_that_a_network_lacks() -> None:
    with pytest.raises(BackboneError, match="family_siglip2 has no class token: leave --global-to"):
        load_backbone("family_siglip2", weights="none", taps=4, global_token=True, image_size=64)


def test_taps_as_they_are_written() -> None:
    assert parse_taps(None) is None
    assert parse_taps("4") == parse_taps(4) == 4
    assert parse_taps("3, 12,6") == parse_taps([12, 3, 6]) == (3, 6, 12)
    assert parse_taps("L9") == parse_taps([9]) == (9,)
    assert parse_taps("L3,L6") == (3, 6)
    for wrong in (
        "0",
        "-1",
        "",
        "four",
        "2,",
        "2,0",
        "1.5",
        "L",
        "1e2",
        "9999",
        0,
        -3,
        True,
        [],
        2.0,
    ):
        with pytest.raises(ValueError, match="expected how many blocks, such as 4, or which ones"):
            parse_taps(wrong)
    for twice in ("3,3", "L3,3", [4, 4]):
        with pytest.raises(ValueError, match="taps must name each block once"):
            parse_taps(twice)


def test_blocks_counted_from_zero_get_a_note(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_blocks([2, 5, 8, 11], depth=12, name="vit") == (2, 5, 8, 11)
    assert "papers that count from 0 mean --taps 3,6,9,12" in caplog.text
    caplog.clear()
    for taps in ([3, 6, 9, 12], [11], [6, 9]):
        choose_blocks(taps, depth=12, name="vit")
    assert not caplog.text

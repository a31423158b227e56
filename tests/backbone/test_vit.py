from __future__ import annotations

import pytest
import torch

from cachedet.backbone.frozen import load_backbone
from cachedet.backbone.split import freeze_trunk, make_stages, split_backbone, stage_weights
from cachedet.backbone.weights import digest_weights
from cachedet.errors import BackboneError
from cachedet.structures import LevelSpec

CUTS = {  # name: where it is cut, class and register tokens
    "test_vit": ("L4", 1),
    "deit_tiny_distilled_patch16_224": ("L9", 2),
    "vit_medium_patch16_gap_240": ("L11", 0),
    "vit_wee_patch16_reg1_gap_256": ("L9", 1),  # two MLPs side by side
    "vit_small_patch14_reg4_dinov2": ("L11", 5),
    "eva02_tiny_patch14_224": ("L8", 1),  # rotary positions beside absolute ones
    "vit_tiny_patch16_dinov3_qkvb": ("L10", 5),  # rotary ones alone
    "vit_small_patch16_rope_mixed_224": ("L11", 1),  # of each block its own
}


@pytest.mark.parametrize("name", CUTS)
def test_trunk_and_blocks_are_the_whole(name: str) -> None:
    """Bit for bit, on a rectangle."""
    cut, tokens = CUTS[name]
    backbone = load_backbone(name, weights="none", cut=cut, image_size=112)
    stride = backbone.spec.levels[0].stride
    channels = backbone.spec.levels[0].channels
    prefix = LevelSpec(name=f"{cut}_prefix", channels=channels, stride=stride, tokens=tokens or 1)
    images = torch.randn(2, 3, 2 * stride, 4 * stride)
    whole = backbone(images)
    assert {k: tuple(v.shape[1:]) for k, v in whole.items()} == {
        cut: (channels, 2, 4),
        **({prefix.name: prefix.shape((2 * stride, 4 * stride))} if tokens else {}),
        "C4": (channels, 2, 4),
    }
    below = freeze_trunk(backbone, cut)(images)
    assert list(below) == list(whole)[:-1]
    for level, feature_map in below.items():
        torch.testing.assert_close(feature_map, whole[level], rtol=0, atol=0)
    stages = split_backbone(backbone, cut).stages
    with torch.no_grad():
        above = stages(*below.values())
    assert list(above) == ["C4"]
    torch.testing.assert_close(above["C4"], whole["C4"], rtol=0, atol=0)


def test_states_between_blocks_change_nothing_else() -> None:
    """One ViT, with and without them: the same weights, the same map."""
    plain = load_backbone("test_vit", weights="none", image_size=64)
    tapped = load_backbone("test_vit", weights="none", levels=("L2", "L4", "C4"), image_size=64)
    assert tapped.spec.names == ("L2", "L2_prefix", "L4", "L4_prefix", "C4")
    assert tapped.spec.pyramid == plain.spec
    assert plain.digest == tapped.digest == digest_weights(tapped.model)
    images = torch.randn(1, 3, 32, 64)
    torch.testing.assert_close(plain(images)["C4"], tapped(images)["C4"], rtol=0, atol=0)
    again = load_backbone("test_vit", weights="none", levels=tapped.spec.names, image_size=64)
    assert again.spec == tapped.spec


def test_weights_behind_the_first_state_serve_all_cuts() -> None:
    backbone = load_backbone("test_vit", weights="none", levels=("L2", "L4", "C4"), image_size=64)
    weights = stage_weights(backbone)
    images = torch.randn(1, 3, 32, 64)
    whole = backbone(images)
    for cut in ("L2", "L4"):
        stages = make_stages("test_vit", spec=backbone.spec, cut=cut, image_size=64).eval()
        for parameter in stages.parameters():
            torch.nn.init.zeros_(parameter)
        stages.load(weights, where="store")
        with torch.no_grad():
            above = stages(*(whole[level.name] for level in stages.inputs))
        assert list(above) == list(whole)[list(whole).index(cut) + 2 :]
        for level, feature_map in above.items():
            torch.testing.assert_close(feature_map, whole[level], rtol=0, atol=0)


def test_the_parts_share_no_weights() -> None:
    backbone = load_backbone("eva02_tiny_patch14_224", weights="none", cut="L8", image_size=56)
    split = split_backbone(backbone, "L8")
    parts = [{id(p) for p in part.parameters()} for part in (split.trunk, split.stages)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {id(p) for p in backbone.model.parameters()}


def test_a_cut_without_the_end_of_the_network_is_refused() -> None:
    backbone = load_backbone("test_vit", weights="none", levels=("L4",), image_size=64)
    with pytest.raises(BackboneError, match="cannot be cut at 'L4': expected one of its levels "):
        split_backbone(backbone, "L4")

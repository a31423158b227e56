"""Networks that timm builds for squares alone, on rectangles."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

from cachedet.backbone.frozen import load_backbone
from cachedet.backbone.split import split_backbone
from cachedet.errors import BackboneError

pytestmark = pytest.mark.usefixtures("families")


def unmodified(name: str, like: Any, *, side: int) -> Any:
    whole = timm.create_model(name, img_size=side).eval()
    _, unexpected = whole.load_state_dict(like.state_dict(), strict=False)
    assert unexpected == []
    return whole


@torch.no_grad()
def test_taps_of_a_beit_are_those_of_the_unmodified_network() -> None:
    """The image in the corner of a square of zeros, and the map of its own cells."""
    backbone = load_backbone(
        "family_beit", weights="none", taps=2, global_token=True, image_size=90
    )
    assert backbone.spec.names == ("L2", "L4", "L4_class")
    images = torch.randn(2, 3, 48, 80)
    whole = unmodified("family_beit", backbone.model.network.model, side=96)
    square = F.pad(images, (0, 16, 0, 48))
    found = backbone(images)
    expected = whole.forward_intermediates(
        square, indices=[1, 3], norm=True, return_prefix_tokens=True, intermediates_only=True
    )
    for name, (patches, _) in zip(("L2", "L4"), expected, strict=True):
        assert found[name].shape == (2, 48, 3, 5)
        torch.testing.assert_close(found[name], patches[:, :, :3, :5], rtol=1e-5, atol=1e-5)
    token = expected[-1][1][:, 0]
    torch.testing.assert_close(found["L4_class"][..., 0, 0], token, rtol=1e-5, atol=1e-5)
    last = load_backbone("family_beit", weights="none", image_size=90)
    assert last.spec.names == ("C4",)
    assert last(images)["C4"].shape == (2, 48, 3, 5)


@torch.no_grad()
def test_levels_of_a_hiera_are_those_of_the_unmodified_network() -> None:
    backbone = load_backbone(
        "family_hiera", weights="none", levels=("C2", "C3", "C4", "C5"), image_size=128
    )
    assert backbone.spec.pad_multiple == 32
    images = torch.randn(1, 3, 96, 128)
    whole = unmodified("family_hiera", backbone.model.network.model, side=128)
    square = F.pad(images, (0, 0, 0, 32))
    expected = whole.forward_intermediates(square, intermediates_only=True)
    for (name, mine), theirs in zip(backbone(images).items(), expected, strict=True):
        height = 96 // {"C2": 4, "C3": 8, "C4": 16, "C5": 32}[name]
        torch.testing.assert_close(mine, theirs[:, :, :height], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["family_beit", "family_hiera"])
def test_what_does_not_fit_is_told(name: str) -> None:
    backbone = load_backbone(name, weights="none", image_size=64)
    message = "built for images of at most 64 pixels a side, got 64 x 96"
    with pytest.raises(BackboneError, match=message):
        backbone(torch.zeros(1, 3, 64, 96))
    with pytest.raises(BackboneError, match=f"{name} has no level 'L2'; it offers C"):
        load_backbone(name, weights="none", levels=("L2",), image_size=64)
    with pytest.raises(BackboneError, match=f"{name} cannot be cut"):
        split_backbone(backbone, backbone.spec.names[0])
    if name == "family_hiera":
        with pytest.raises(BackboneError, match="family_hiera has no taps"):
            load_backbone(name, weights="none", taps=2, image_size=64)


def test_other_networks_of_one_size_stay_refused() -> None:
    with pytest.raises(BackboneError, match="cannot be opened as a feature extractor for rect"):
        load_backbone("cait_xxs24_224", weights="none", image_size=64)

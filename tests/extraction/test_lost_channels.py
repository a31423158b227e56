"""Codecs on maps with channels far larger than the others, as transformers have them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cachedet.backbone.custom import wrap_backbone
from cachedet.extract import extract
from cachedet.extraction.lost_channels import describe_lost_channels
from cachedet.store.codecs.codec import Codec
from cachedet.store.codecs.registry import make_codec
from cachedet.store.codecs.statistics import FeatureStatistics
from cachedet.structures import LevelSpec

LARGE = [3, 17]  # channels


def make_maps(*, factor: float, seed: int = 0) -> Tensor:
    """96 channels that share some directions; of two of them the values are larger, off zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(96, 96, generator=torch.Generator().manual_seed(9)) / 96**0.5
    maps = torch.einsum("dc,nchw->ndhw", mixing, torch.randn(1, 96, 12, 16, generator=generator))
    maps[:, LARGE] = maps[:, LARGE] * factor + (60 if factor > 1 else 0)
    return maps


def fit(name: str, *, factor: float) -> Codec:
    statistics = FeatureStatistics()
    for seed in range(8):
        statistics.add({"L12": make_maps(factor=factor, seed=seed)})
    return make_codec(name).fit(statistics.levels)


@pytest.mark.parametrize("name", ["fp16", "int8", "int8+zstd", "int4", "snr6", "snr12", "snr20"])
def test_alike_channels_are_kept(name: str) -> None:
    codec, maps = fit(name, factor=1), make_maps(factor=1)
    assert describe_lost_channels(codec, {"L12": maps}) == ""


@pytest.mark.parametrize(("name", "is_lost"), [("int8", False), ("int4", False), ("snr12", True)])
def test_large_channels_hide_the_others_from_a_shared_step(name: str, is_lost: bool) -> None:
    codec, maps = fit(name, factor=20), make_maps(factor=20)
    note = describe_lost_channels(codec, {"L12": maps})
    assert bool(note) is is_lost
    if is_lost:
        assert note.startswith("note: codec snr12 loses most channels (100% of L12): a few are so")


def test_a_constant_map_has_nothing_to_lose() -> None:
    codec = make_codec("int8").fit({})
    flat = torch.full((1, 4, 3, 3), 2.0)
    statistics = FeatureStatistics()
    statistics.add({"L1": flat})
    assert describe_lost_channels(codec.fit(statistics.levels), {"L1": flat}) == ""


class Lopsided(nn.Module):
    """Strides of 16; one channel is far larger than the other 31, which differ cell by cell."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 16, stride=16)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.conv(images)
        maps = maps + torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))
        maps[:, 0] = maps[:, 0] * 60 + 400
        return [maps]


@pytest.mark.parametrize(("codec", "notes"), [("int8", 0), ("snr12", 1)])
def test_extract_notes_it(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, codec: str, notes: int
) -> None:
    level = LevelSpec(name="C4", channels=32, stride=16)
    backbone = wrap_backbone(Lopsided(), name="lopsided", levels=[level])
    with caplog.at_level(logging.WARNING, logger="cachedet.extract"):
        extract(
            images=tiny.paths.images, annotations=tiny.paths.train, store=tmp_path / "s",
            backbone=backbone, codec=codec, image_size=128, views="base", device="cpu",
        )  # fmt: skip
    found = [r.getMessage() for r in caplog.records if "loses most channels" in r.getMessage()]
    assert len(found) == notes

"""The backbone alone, and codecs on its features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cachedet.backbone.frozen import load_backbone
from cachedet.data.annotation_formats import read_dataset
from cachedet.data.views import parse_views
from cachedet.estimation.probe import CODECS, codec_figures, measure_backbone, measure_codecs
from cachedet.estimation.sample import padded_sizes
from cachedet.estimation.trial import collect_statistics, take_sample


def test_flops_of_a_pixel_do_not_depend_on_the_batch() -> None:
    backbone = load_backbone("test_resnet", weights="none", image_size=64)
    one, features = measure_backbone(backbone, torch.rand(1, 3, 64, 64))
    two, _ = measure_backbone(backbone, torch.rand(2, 3, 64, 64))
    assert one.flops == two.flops
    assert one.seconds > 0
    assert features["C3"].shape[0] == 1
    # its first convolution alone: 7 or 3 pixels wide, a multiplication and an addition each
    first = next(m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d))
    stride = first.stride[0] ** 2
    assert one.flops > 2 * first.weight.numel() / stride


def test_trunks_take_a_share_of_the_forward() -> None:
    backbone = load_backbone("test_resnet", weights="none", image_size=64)
    cost, features = measure_backbone(backbone, torch.rand(2, 3, 64, 64), cuts=("C4", "C3"))
    assert list(cost.trunks) == ["C4", "C3"]
    assert all(0 < share <= 1 for share in cost.trunks.values())
    assert list(features) == ["C3", "C4", "C5"]


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_bytes_of_the_whole_cache_are_those_that_are_written(
    tiny: Any, tmp_path: Path, codec: str
) -> None:
    config = tiny.extract_config(tmp_path / "x.zarr", codec=codec)
    dataset = read_dataset(annotations=tiny.paths.train, images=tiny.paths.images)
    backbone = load_backbone("test_resnet", weights=str(tiny.weights), image_size=128)
    sample = take_sample(dataset, range(4), config, backbone)
    fit = collect_statistics(sample, backbone, view="base", count=2)
    views = parse_views("base,hflip")
    sizes = padded_sizes(
        dataset.annotations, views, image_size=128, pad_multiple=backbone.spec.pad_multiple
    )
    height, width = sizes[0, 0].tolist()
    rows = np.flatnonzero((sizes[0, :4] == sizes[0, 0]).all(axis=1)).tolist()
    images = torch.stack([sample.loader.load(row, "base") for row in rows])
    _, features = measure_backbone(backbone, images)
    costs = measure_codecs(features, fit, spec=backbone.spec, bucket=(height, width), codec=codec)
    assert next(iter(costs)) == codec
    assert set(costs) == set(CODECS)
    assert costs["fp32"].share == costs["int4"].share == 1.0
    assert costs["int8+zstd"].share < 1.0
    figures = codec_figures(costs["fp32"], sizes, share=1.0)
    shards = [p for p in tiny.train.rglob("*") if p.is_file() and "/c/" in str(p)]
    written = sum(path.stat().st_size for path in shards)
    assert figures.nbytes == pytest.approx(written, rel=0.02)
    assert figures.unpacked == pytest.approx(figures.nbytes, rel=0.02)
    cut = codec_figures(costs["fp32"].stored_to("C4"), sizes, share=1.0)
    written = sum(path.stat().st_size for path in shards if "/C5/" not in str(path))
    assert cut.nbytes == pytest.approx(written, rel=0.02)
    assert cut.nbytes < figures.nbytes
    half = codec_figures(costs["fp32"], sizes, share=0.5)
    assert half.nbytes == pytest.approx(figures.nbytes / 2)

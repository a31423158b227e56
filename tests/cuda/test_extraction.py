"""Extraction on a GPU: the same twice, close to the CPU's, and the same for any batch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cachedet.backbone.frozen import load_backbone
from cachedet.backbone.weights import PACKAGES
from cachedet.extract import extract
from cachedet.store.codecs.registry import make_codec
from cachedet.store.codecs.statistics import FeatureStatistics
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# Largest difference from the CPU over the largest value of a level. A few dozen layers deep,
# float32 loses three of its seven digits to the order of summation, TF32 three of its three.
FLOAT32, TF32 = 1e-4, 3e-2


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Over the largest value of what is expected."""
    return float((found.cpu().double() - expected.double()).abs().max() / expected.abs().max())


def worst_difference(found: FeatureStore, expected: FeatureStore) -> float:
    """Of any level of any image in its views base and hflip."""
    return max(
        difference(found.read(row, view)[level], maps)
        for row in range(len(expected))
        for view in ("base", "hflip")
        for level, maps in expected.read(row, view).items()
    )


@pytest.mark.parametrize("codec", ["fp32", "int8", "int8+zstd", "int4+zstd", "snr12"])
def test_extracting_again_is_bit_exact(tiny: Any, tmp_path: Path, codec: str) -> None:
    """Law L5 on one kind of processor, with torch's own defaults; other workers."""
    one, other = tmp_path / "1.zarr", tmp_path / "2.zarr"
    extract(tiny.extract_config(one, device="cuda", codec=codec))
    extract(tiny.extract_config(other, device="cuda", codec=codec, workers=4))
    assert digests(one) == digests(other)
    assert verify_store(one, deep=True).is_good


def test_the_features_are_those_of_the_cpu(tiny: Any, cuda_train: Path) -> None:
    here, there = FeatureStore.open(tiny.train), FeatureStore.open(cuda_train)
    assert here.manifest.fingerprint() == there.manifest.fingerprint()
    worst = worst_difference(there, here)
    print(f"cuda to cpu, test_resnet, float32: {worst:.2e}")
    assert 0 < worst < FLOAT32


@pytest.mark.parametrize(("uses_tf32", "bound"), [(False, FLOAT32), (True, TF32)])
def test_a_real_backbone_gives_what_it_gives_on_a_cpu(
    uses_tf32: bool, bound: float, float32: None
) -> None:
    if PACKAGES["tf_efficientnet_lite0"].installed_file() is None:
        pytest.skip("needs the weights package of the extra `demo`")
    images = torch.rand(4, 3, 192, 256) * 2 - 1
    expected = load_backbone("tf_efficientnet_lite0", image_size=256)(images)
    torch.backends.cudnn.allow_tf32 = uses_tf32
    backbone = load_backbone("tf_efficientnet_lite0", image_size=256, device=torch.device("cuda"))
    found = backbone(images.cuda())
    for level, maps in expected.items():
        print(f"lite0 {level}, TF32 {uses_tf32}: {difference(found[level], maps):.2e}")
        assert difference(found[level], maps) < bound


def test_the_features_do_not_depend_on_the_batch(
    tiny: Any, cuda_train: Path, tmp_path: Path, float32: None
) -> None:
    """Law L5; cuDNN may sum in another order for another batch."""
    extract(tiny.extract_config(tmp_path / "1.zarr", device="cuda", block_size=1, batch_size=1))
    together, alone = FeatureStore.open(cuda_train), FeatureStore.open(tmp_path / "1.zarr")
    for row in range(len(together)):
        for level, maps in together.read(row, "base").items():
            assert difference(alone.read(row, "base")[level], maps) < 1e-5


@pytest.mark.filterwarnings("ignore")  # the compiler's advice, such as to use TF32
def test_a_compiled_backbone_gives_the_same_features(
    tiny: Any, cuda_train: Path, tmp_path: Path, float32: None
) -> None:
    """Several sizes, a last batch that is smaller, graphs whose memory the next batch takes."""
    store = tmp_path / "compiled.zarr"
    extract(tiny.extract_config(store, device="cuda", compile=True))
    compiled, plain = FeatureStore.open(store), FeatureStore.open(cuda_train)
    assert compiled.manifest.fingerprint() == plain.manifest.fingerprint()
    worst = worst_difference(compiled, plain)
    print(f"compiled to plain, test_resnet, float32: {worst:.2e}")
    assert worst < FLOAT32


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16", "int8", "int4"])
def test_codes_are_made_on_the_gpu_and_are_those_of_the_cpu(name: str) -> None:
    """To the bit; no other maps than these are copied."""
    maps = torch.randn(4, 16, 12, 20, generator=torch.Generator().manual_seed(0))
    maps[1] = 0
    maps[2] *= 1e-30
    statistics = FeatureStatistics()
    statistics.add({"C4": maps})
    codec = make_codec(name).fit(statistics.levels)
    expected = codec.encode(maps, level="C4", images=["x"] * 4)
    found = codec.encode(maps.cuda(), level="C4", images=["x"] * 4)
    assert all(part.is_cuda for part in found.parts.values())
    for part, array in found.arrays().items():
        np.testing.assert_array_equal(array, expected.arrays()[part])

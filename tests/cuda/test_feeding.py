"""Batches made beside the training step on a GPU: the right values, whatever is still under way.

`torch.cuda._sleep` keeps a stream busy for a number of clock cycles. What is queued behind it has
not happened yet when Python goes on, so memory that is given away too early is overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.augmentation.steps import make_augment
from cachedet.config.run import AugmentConfig, Residency
from cachedet.loading.loader import FeatureLoader
from cachedet.loading.residency import FeatureSource, make_source
from cachedet.store.reader import FeatureStore, Key
from cachedet.structures import Annotations, Batch, Features

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

VIEWS, LEVELS = ("base", "hflip"), ("C4", "C5")
KINDS: tuple[Residency, ...] = ("stream", "ram", "device")
EXACT = ("fp32", "fp16", "bf16", "int8", "int8+zstd", "int4", "int4+zstd")
CYCLES = 40_000_000  # 20 to 40 ms
EPOCHS = 6


@pytest.fixture
def annotations(annotations_of: Any) -> Annotations:
    """Two buckets, boxes in most images."""
    sizes = [(96, 128), (96, 128), (128, 96), (96, 128), (90, 128), (96, 128), (128, 96)]
    boxes = [[[8, 8, 40 + 4 * n, 60, n % 3, 0]] for n in range(6)]
    return annotations_of(sizes, [*boxes, []])


@pytest.fixture
def open_store(
    tmp_path: Path, annotations: Annotations, store_kit: Any
) -> Callable[[str], FeatureStore]:
    def make(codec: str) -> FeatureStore:
        root = store_kit.of(annotations).fill(tmp_path / "s.zarr", store_kit.noise_of, codec=codec)
        return FeatureStore.open(root)

    return make


def source_of(store: FeatureStore, kind: Residency, device: str) -> FeatureSource:
    return make_source(
        kind, store, views=VIEWS, levels=LEVELS, device=torch.device(device), threads=2
    )


def loader_of(
    store: FeatureStore, kind: Residency, device: str, augment: AugmentConfig | None = None
) -> FeatureLoader:
    return FeatureLoader(
        store,
        views=VIEWS,
        levels=LEVELS,
        batch_size=2,
        seed=3,
        device=torch.device(device),
        source=source_of(store, kind, device),
        augment=None if augment is None else make_augment(augment, spec=store.manifest.spec),
    )


def on_cpu(batch: Batch) -> Batch:
    """A copy that the current stream makes."""
    return Batch(
        features={level: maps.clone().cpu() for level, maps in batch.features.items()},
        targets=[targets.to(torch.device("cpu")) for targets in batch.targets],
    )


def assert_same(found: Batch, expected: Batch, *, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(found.features, expected.features, rtol=tolerance, atol=tolerance)
    for one, other in zip(found.targets, expected.targets, strict=True):
        assert (one.image_id, one.size_hw) == (other.image_id, other.size_hw)
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.crowd, other.crowd)


@pytest.mark.parametrize("codec", [*EXACT, "pca2+int8", "snr12"])
def test_all_residencies_give_the_batches_of_the_cpu(open_store: Any, codec: str) -> None:
    """Bit for bit, but for products of matrices."""
    store = open_store(codec)
    expected = list(loader_of(store, "stream", "cpu").epoch(0))
    found: dict[str, list[Batch]] = {}
    for kind in KINDS:
        batches = list(loader_of(store, kind, "cuda").epoch(0))
        for batch in batches:
            for maps in batch.features.values():
                assert maps.is_cuda
                assert maps.is_contiguous(memory_format=torch.channels_last)
            assert all(targets.boxes.is_cuda for targets in batch.targets)
        found[kind] = [on_cpu(batch) for batch in batches]
    for kind in KINDS:
        for one, of_stream, other in zip(found[kind], found["stream"], expected, strict=True):
            assert_same(one, of_stream)
            assert_same(one, other, tolerance=0.0 if codec in EXACT else 1e-5)


@pytest.mark.parametrize("kind", ["stream", "ram"])
def test_pinned_memory_is_not_used_again_before_its_copy_is_done(
    open_store: Any, kind: Residency
) -> None:
    """Read after read is queued behind a busy stream, and its host buffers are dropped."""
    store = open_store("int8")
    plan: list[list[Key]] = [[(0, "base"), (1, view)] for view in VIEWS] + [[(3, "hflip")]] * 2
    cpu, source = source_of(store, "stream", "cpu"), source_of(store, kind, "cuda")
    stream = torch.cuda.Stream()
    found: list[Features] = []
    with torch.cuda.stream(stream):
        for keys in plan * 4:
            torch.cuda._sleep(CYCLES)
            found.append(source.read(keys))
    stream.synchronize()
    for keys, maps in zip(plan * 4, found, strict=True):
        on_host = {level: own.cpu() for level, own in maps.items()}
        torch.testing.assert_close(on_host, cpu.read(keys), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_a_busy_step_has_dropped_are_not_overwritten(
    open_store: Any, kind: Residency
) -> None:
    """Python is many batches ahead of the step; nothing holds those it has passed on."""
    store = open_store("int8+zstd")
    cpu, cuda = loader_of(store, "stream", "cpu"), loader_of(store, kind, "cuda")
    taken: list[Features] = []
    for epoch in range(EPOCHS):
        for batch in cuda.epoch(epoch):
            torch.cuda._sleep(CYCLES // 4)
            taken.append({level: maps.clone() for level, maps in batch.features.items()})
            del batch
    expected = [batch.features for epoch in range(EPOCHS) for batch in cpu.epoch(epoch)]
    for maps, others in zip(taken, expected, strict=True):
        on_host = {level: own.cpu() for level, own in maps.items()}
        torch.testing.assert_close(on_host, others, rtol=0, atol=0)


def test_a_slow_copy_delays_the_step_not_its_values(open_store: Any) -> None:
    """The step must wait on the device for the event of its batch."""
    store = open_store("fp16")

    class Slow:
        def __init__(self, inner: FeatureSource) -> None:
            self._inner = inner

        def read(self, keys: Sequence[Key]) -> Features:
            maps = self._inner.read(keys)
            torch.cuda._sleep(CYCLES)
            return {level: own + 1 for level, own in maps.items()}

    slow = FeatureLoader(
        store,
        views=VIEWS,
        levels=LEVELS,
        batch_size=2,
        seed=3,
        device=torch.device("cuda"),
        source=Slow(source_of(store, "device", "cuda")),
    )
    taken = [
        {level: maps.clone() for level, maps in batch.features.items()} for batch in slow.epoch(0)
    ]
    for maps, batch in zip(taken, loader_of(store, "stream", "cpu").epoch(0), strict=True):
        on_host = {level: own.cpu() for level, own in maps.items()}
        expected = {level: own + 1 for level, own in batch.features.items()}
        torch.testing.assert_close(on_host, expected, rtol=0, atol=0)


@pytest.mark.parametrize("step", ["translate", "crop", "flip"])
def test_augmentation_is_that_of_the_cpu(open_store: Any, step: str) -> None:
    store = open_store("int8")
    config = AugmentConfig.model_validate({step: 0.9})
    pairs = zip(
        loader_of(store, "device", "cuda", config).epoch(1),
        loader_of(store, "stream", "cpu", config).epoch(1),
        strict=True,
    )
    for found, expected in pairs:
        assert_same(on_cpu(found), expected)

"""All residencies give the same bits, or the same errors."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cachedet.config.run import Residency
from cachedet.errors import ConfigError, CorruptBlockError, StoreError
from cachedet.loading.loader import FeatureLoader, make_loader
from cachedet.loading.residency import (
    FeatureSource,
    Need,
    RamFeatures,
    choose_residency,
    make_source,
    with_disk_cache,
)
from cachedet.progress import show_progress
from cachedet.store.codecs.codec import Part
from cachedet.store.format.shards import pack_chunk
from cachedet.store.reader import FeatureStore
from cachedet.structures import Annotations

CPU = torch.device("cpu")
VIEWS = ("base", "hflip")
KINDS: tuple[Residency, ...] = ("stream", "ram", "device")
CODECS = ("fp32", "fp16", "bf16", "int8", "int8+zstd", "int4", "int4+zstd", "pca2+int8", "snr12")
GB = 10**9


@pytest.fixture
def annotations(annotations_of: Any) -> Annotations:
    return annotations_of([(96, 128), (96, 128), (128, 96), (96, 128), (90, 128)])


def source_of(store: FeatureStore, kind: Residency, *, levels: tuple[str, ...]) -> FeatureSource:
    return make_source(kind, store, views=VIEWS, levels=levels, device=CPU, threads=2)


@pytest.mark.parametrize("codec", CODECS)
def test_batches_are_bit_identical(
    tmp_path: Path, annotations: Annotations, store_kit: Any, codec: str
) -> None:
    root = store_kit.of(annotations).fill(tmp_path / "s.zarr", store_kit.noise_of, codec=codec)
    store = FeatureStore.open(root)
    for levels in (("C4", "C5"), ("C5",)):
        sources = {kind: source_of(store, kind, levels=levels) for kind in KINDS}
        loaders = {
            kind: FeatureLoader(
                store, views=VIEWS, levels=levels, batch_size=2, seed=3, source=source
            )
            for kind, source in sources.items()
        }
        plan = loaders["stream"].plan(0)
        for keys, *batches in zip(
            plan, *(loader.epoch(0) for loader in loaders.values()), strict=True
        ):
            for batch in batches:
                assert list(batch.features) == list(levels)
                for n, (view, row) in enumerate(keys):
                    exact = store.read(int(row), VIEWS[view])
                    for level in levels:
                        assert torch.equal(batch.features[level][n], exact[level])


def test_a_disk_cache_is_chosen_where_the_memory_is_too_small() -> None:
    need = Need(stored=9 * GB, unpacked=9 * GB, ram=4 * GB, device=4 * GB, device_name="cpu")
    cached = replace(need, disk="at most 200.00 GB in /cache")
    assert choose_residency("auto", need, has_own_memory=False)[0] == "stream"
    kind, reason = choose_residency("auto", cached, has_own_memory=False)
    assert kind == "disk"
    assert reason.endswith("more than half of 4.00 GB of RAM; at most 200.00 GB in /cache")
    roomy = replace(cached, ram=100 * GB)
    assert choose_residency("auto", roomy, has_own_memory=False)[0] == "ram"
    assert choose_residency("disk", roomy, has_own_memory=False)[0] == "disk"


def test_a_disk_cache_of_a_store_on_this_machine_is_refused(
    tmp_path: Path, annotations: Annotations, store_kit: Any
) -> None:
    store = FeatureStore.open(store_kit.of(annotations).fill(tmp_path / "s.zarr"))
    assert with_disk_cache(store, "stream", None) is store
    for residency, most in (("disk", None), ("auto", GB)):
        with pytest.raises(ConfigError, match="copies of a store in a bucket, .*lies on this"):
            with_disk_cache(store, residency, most)  # type: ignore[arg-type]


@pytest.fixture
def twins(
    tmp_path: Path,
    annotations: Annotations,
    store_kit: Any,
    s3: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[FeatureStore, FeatureStore]:
    """One store in a folder and in a bucket; copies from there go to `tmp_path / "cache"`."""
    monkeypatch.setenv("CACHEDET_DISK_CACHE", str(tmp_path / "cache"))
    kit, places = store_kit.of(annotations), (tmp_path / "s.zarr", s3.new_url())
    for place in places:
        kit.fill(place, kit.noise_of, codec="int8+zstd")
    return FeatureStore.open(places[0]), FeatureStore.open(places[1])


def test_batches_through_a_disk_cache_are_bit_identical(
    tmp_path: Path, twins: tuple[FeatureStore, FeatureStore], s3: Any
) -> None:
    """All residencies of a remote store fill it, and none asks twice."""
    local, remote = twins
    store = with_disk_cache(remote, "disk", GB)
    assert store.disk_cache == f"at most 1.00 GB in {tmp_path / 'cache'}"
    keys = [(0, "base"), (3, "hflip"), (1, "base")]
    exact = source_of(local, "stream", levels=("C4", "C5")).read(keys)
    for kind in ("disk", *KINDS):
        maps = source_of(store, kind, levels=("C4", "C5")).read(keys)
        assert all(torch.equal(maps[level], exact[level]) for level in exact)
    s3.requests.clear()
    source_of(store, "ram", levels=("C4", "C5"))
    assert not any("/c/" in key for _, key in s3.requests)


def test_epochs_of_a_remote_store_are_those_of_a_folder_and_the_second_asks_nothing(
    tmp_path: Path, twins: tuple[FeatureStore, FeatureStore], s3: Any
) -> None:
    """Batches are fetched ahead; each chunk is asked for once, also where requests fail."""
    local = make_loader(twins[0], batch_size=2)
    loader = make_loader(twins[1], batch_size=2, residency="disk", disk_cache=GB)
    asked: list[int] = []
    for epoch in (0, 0, 1):
        s3.requests.clear()
        failures = iter([True, False, True])
        s3.before = lambda method, key, left=failures: (
            (503, "SlowDown") if "/c/" in key and next(left, False) else None
        )
        for mine, its in zip(loader.epoch(epoch), local.epoch(epoch), strict=True):
            assert all(
                torch.equal(mine.features[name], its.features[name]) for name in ("C4", "C5")
            )
        asked.append(sum("/c/" in key for _, key in s3.requests))
    assert asked[0] > 0 == asked[1]
    (tmp_path / "cache").rename(tmp_path / "lost")  # copies that are open are read on
    for mine, its in zip(loader.epoch(0), local.epoch(0), strict=True):
        assert torch.equal(mine.features["C4"], its.features["C4"])


def test_maps_in_huge_pages_are_the_same(
    tmp_path: Path, annotations: Annotations, store_kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = store_kit.of(annotations).fill(tmp_path / "s.zarr", store_kit.noise_of, codec="int8")
    store = FeatureStore.open(root)
    source = source_of(store, "stream", levels=("C4", "C5"))
    keys = [(0, "base"), (3, "hflip"), (1, "base")]
    plain = source.read(keys)
    monkeypatch.setattr("cachedet.loading.decoding._LARGE", 1)
    huge = source.read(keys)
    del source, store  # the maps own their memory
    for level, maps in plain.items():
        assert torch.equal(huge[level], maps)
        assert huge[level].is_contiguous(memory_format=torch.channels_last)
        huge[level].mul_(2)  # and it may be written to
        assert torch.equal(huge[level], maps * 2)


@pytest.mark.parametrize("kind", ["ram", "device"])
def test_nothing_is_read_again_once_it_is_held(
    tmp_path: Path, annotations: Annotations, store_kit: Any, kind: Residency
) -> None:
    root = store_kit.of(annotations).fill(
        tmp_path / "s.zarr", store_kit.noise_of, codec="int8+zstd"
    )
    store = FeatureStore.open(root)
    exact = store.read(3, "hflip")
    source = source_of(store, kind, levels=("C4", "C5"))
    shutil.rmtree(root)
    features = source.read([(3, "hflip"), (0, "base")])
    assert torch.equal(features["C5"][0], exact["C5"])


def test_ram_keeps_what_is_compressed_compressed(
    tmp_path: Path, annotations: Annotations, store_kit: Any
) -> None:
    root = store_kit.of(annotations).fill(tmp_path / "s.zarr", codec="int8+zstd")  # constant maps
    store = FeatureStore.open(root)
    room = store.make_buffers(store.bucket_of(0, "base"), 1, ("C4",))
    [(codes, scale)] = store.read_packed([(0, "base")], out=room)
    assert isinstance(codes, bytes)
    assert isinstance(scale, np.ndarray)
    assert len(codes) < 3 * 6 * 8  # C x h x w int8 codes
    stored, unpacked = store.encoded_nbytes(("base",), ("C4",))
    on_disk = sum(f.stat().st_size for f in root.glob("base/*/C4/*/c/**/*") if f.is_file())
    assert stored == on_disk
    assert unpacked == 5 * (3 * 6 * 8 + 3 * 4)
    assert store.encoded_nbytes(VIEWS, ("C4",))[1] == 2 * unpacked


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found_wherever_features_wait(
    tmp_path: Path, annotations: Annotations, store_kit: Any, kind: Residency
) -> None:
    root = store_kit.of(annotations).fill(
        tmp_path / "s.zarr", store_kit.noise_of, codec="int8+zstd"
    )
    shard = next(f for f in sorted(root.glob("base/b96x128/C5/codes/c/**/*")) if f.is_file())
    store_kit.flip_bit(shard, 12)
    store = FeatureStore.open(root)
    rows = store.buckets("base")[96, 128].tolist()
    with pytest.raises(CorruptBlockError, match="base-b.*verify --deep"):
        source_of(store, kind, levels=("C5",)).read([(row, "base") for row in rows])


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_is_gone_is_no_damage(
    tmp_path: Path, annotations: Annotations, store_kit: Any, kind: Residency
) -> None:
    root = store_kit.of(annotations).fill(tmp_path / "s.zarr")
    store = FeatureStore.open(root)
    shutil.rmtree(root)
    with pytest.raises(StoreError, match=r"s.zarr is gone: .*train-heads --resume") as caught:
        source_of(store, kind, levels=("C5",)).read([(0, "base")])
    assert not isinstance(caught.value, CorruptBlockError)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("codec", "dtype", "bad"),
    [
        ("int8", "float32", np.nan),
        ("int4+zstd", "float16", np.inf),
        ("pca2+int8", "float32", -np.inf),
    ],
)
def test_a_scale_that_is_no_number(
    tmp_path: Path,
    annotations: Annotations,
    store_kit: Any,
    kind: Residency,
    codec: str,
    dtype: str,
    bad: float,
) -> None:
    """Checksums fit: whoever wrote this store wrote the scale so."""
    writer = store_kit.of(annotations).open_writer(tmp_path / "s.zarr", codec=codec)
    for block in writer.missing_blocks():
        packed = writer.encode(block, store_kit.noise_of(block))
        if 1 in block.rows:
            spoil(packed.chunks["C4/scale"], block.rows.index(1), dtype=dtype, value=bad)
        writer.commit(block, [packed])
    store = FeatureStore.open(tmp_path / "s.zarr")
    with pytest.raises(
        StoreError,
        match=r"the scale of level C4 of image_1.jpg \(view base\) is not a finite number.*new",
    ):
        source_of(store, kind, levels=("C4",)).read([(0, "base"), (1, "base")])


def spoil(chunks: list[Any], slot: int, *, dtype: str, value: float) -> None:
    """One scale of one image becomes `value`, with a checksum that fits."""
    scale = np.frombuffer(chunks[slot][0], dtype=dtype).copy()
    scale[-1] = value
    part = Part(name="scale", dtype=dtype, shape=scale.shape, packing="crc32c")
    chunks[slot] = pack_chunk(scale, part)


def need(**changes: int) -> Need:
    values = {"stored": GB, "unpacked": 3 * GB, "ram": 8 * GB, "device": 8 * GB} | changes
    return Need(**values, device_name="cuda:0")


@pytest.mark.parametrize(
    ("changes", "expected", "words"),
    [
        ({}, "device", "decompressed codes need 3.00 GB and half of 8.00 GB of cuda:0 is free"),
        ({"device": 5 * GB}, "ram", "3.00 GB, more than half of 5.00 GB of cuda:0; encoded feat"),
        ({"device": 5 * GB, "ram": GB}, "stream", "need 1.00 GB, more than half of 1.00 GB of RAM"),
    ],
)
def test_auto_says_what_it_reckoned(changes: dict[str, int], expected: str, words: str) -> None:
    kind, reason = choose_residency("auto", need(**changes), has_own_memory=True)
    assert kind == expected
    assert reason.startswith(f"residency auto: {expected}, as ")
    assert words in reason


def test_auto_on_a_cpu_never_keeps_decompressed_codes() -> None:
    kind, reason = choose_residency("auto", need(), has_own_memory=False)
    assert kind == "ram"
    assert reason == (
        "residency auto: ram, as encoded features need 1.00 GB and at most half of 8.00 GB of RAM "
        "goes"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_named_is_taken_even_beyond_half(kind: Residency) -> None:
    tight = need(stored=7 * GB, unpacked=7 * GB)
    taken, reason = choose_residency(kind, tight, has_own_memory=True)
    assert taken == kind
    assert reason.startswith(f"residency {kind}: ")


def test_what_does_not_fit_is_refused_with_the_difference() -> None:
    with pytest.raises(
        ConfigError,
        match=r"decompressed codes need 3.00 GB, only 2.00 GB of cuda:0 are free: 1.00 GB too "
        r"little. Use --residency ram",
    ):
        choose_residency("device", need(device=2 * GB), has_own_memory=True)
    with pytest.raises(ConfigError, match=r"only 500.* MB of RAM are free: .*residency stream"):
        choose_residency("ram", need(ram=GB // 2), has_own_memory=False)


def test_long_loading_shows_progress(
    tmp_path: Path,
    annotations: Annotations,
    store_kit: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = store_kit.of(annotations).fill(tmp_path / "s.zarr")
    store = FeatureStore.open(root)
    with show_progress():
        RamFeatures(store, views=VIEWS, levels=("C4",), device=CPU)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("cachedet.loading.residency._WORTH_A_LINE", 1)
    with show_progress():
        RamFeatures(store, views=VIEWS, levels=("C4",), device=CPU)
    assert f"load features: {len(store.blocks)}/{len(store.blocks)}" in capsys.readouterr().err

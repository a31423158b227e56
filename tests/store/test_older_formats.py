"""Stores of format 2: read, continued and repaired as what they are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.store.reader import FeatureStore
from cachedet.structures import Annotations


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A finished store of format 2."""
    shutil.unpack_archive(Path(__file__).parent / "fixtures" / "format-2.zip", tmp_path / "older")
    (tmp_path / "older" / "int8" / "expected.npz").unlink()
    return tmp_path / "older" / "int8"


@pytest.fixture
def older_annotations(annotations_of: Callable[..., Annotations]) -> Annotations:
    """What its images show."""
    sizes = [(96, 128)] * 3
    return annotations_of(sizes, [[[1, 2, 30, 40, 1, 0]], [], [[5, 5, 9, 9, 0, 1]]])


def test_a_store_of_an_older_format_is_continued_in_it(
    older: Path, older_annotations: Annotations, kit: Any
) -> None:
    """Its maps lie channel after channel: a block written cell after cell would be garbage."""
    whole = kit.files(older)
    before = FeatureStore.open(older).read(0, "base")
    next((older / "commits").glob("*-000000.json")).unlink()
    kit.fill(older, older_annotations, kit.noise_of, codec="int8", views=("base",))
    again = kit.files(older)
    assert {name for name in whole if whole[name] != again[name]} <= {"manifest.json"}
    kit.fill(older, older_annotations, kit.noise_of, codec="int8", views=("base", "hflip"))
    store = FeatureStore.open(older)
    assert store.manifest.format_version == 2
    assert store.manifest.views == ("base", "hflip")
    for level, maps in store.read(0, "base").items():
        torch.testing.assert_close(maps, before[level], rtol=0, atol=0)


def test_a_damaged_manifest_of_an_older_format_comes_back_in_it(
    older: Path, older_annotations: Annotations, kit: Any
) -> None:
    before = FeatureStore.open(older).read(0, "base")
    (older / "manifest.json").write_bytes(b"{")
    kit.open_writer(older, older_annotations, codec="int8", views=("base",))
    store = FeatureStore.open(older)
    assert store.manifest.format_version == 2
    for level, maps in store.read(0, "base").items():
        torch.testing.assert_close(maps, before[level], rtol=0, atol=0)

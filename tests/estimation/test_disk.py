"""Disk rates: the arithmetic, and that the file is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachedet.estimation.disk import drop_from_cache, measure_disk, sustained_rate


def test_the_later_half_counts() -> None:
    """A cache takes the first two at 100 a second; the disk behind it sustains 10."""
    assert sustained_rate([(100, 1.0), (100, 1.0), (100, 10.0), (100, 10.0)]) == 10.0
    assert sustained_rate([(100, 4.0)]) == 25.0


def test_a_real_disk(tmp_path: Path) -> None:
    rates = measure_disk(tmp_path, nbytes=1 << 20, piece=100_000, free=1 << 40, seconds=0.05)
    assert rates.write > 0
    assert rates.read > 0
    assert list(tmp_path.iterdir()) == []


def test_a_nearly_full_disk_is_not_filled(tmp_path: Path) -> None:
    rates = measure_disk(tmp_path, nbytes=1 << 40, piece=1 << 20, free=4 << 20, seconds=60.0)
    assert rates.write > 0  # of a quarter of 4 MB, or this would take a minute


def test_nothing_is_left_where_the_disk_refuses(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        measure_disk(tmp_path / "nowhere", nbytes=1, piece=1, free=1 << 40, seconds=0.1)
    assert list(tmp_path.iterdir()) == []


def test_a_file_keeps_its_content_when_it_leaves_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 5000)
    drop_from_cache(path)
    assert path.read_bytes() == b"abc" * 5000

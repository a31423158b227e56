"""Sizes in messages say something, however small they are."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from cachedet.errors import StoreError
from cachedet.store.files.durable import cannot_write, readable_nbytes, require_space


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (2_345_678, "2.35 MB"),
        (10**9, "1.00 GB"),
        (4 * 10**12, "4000.00 GB"),
    ],
)
def test_the_unit_is_chosen(nbytes: int, text: str) -> None:
    assert readable_nbytes(nbytes) == text


def test_a_disk_that_lacks_little(tmp_path: Path) -> None:
    """The two sizes may look the same; what is missing does not."""
    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path / "not there yet", free // 2)
    message = r"still to be written, the disk has .* free, .* too littl"
    with pytest.raises(StoreError, match=message):
        require_space(tmp_path / "not there yet", free + 10**9)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_what_is_free_is_told_where_room_is_the_trouble(tmp_path: Path, number: int) -> None:
    error = OSError(number, os.strerror(number), str(tmp_path / "shard"))
    message = str(cannot_write(tmp_path, error, needed=300))
    assert (
        f"cannot write {tmp_path / 'shard'}: {os.strerror(number)}; this block needs 300 bytes, "
        in (message)
    )
    assert "are free. What was committed is safe: repair the cause and run the same" in message


def test_what_is_free_is_no_matter_elsewhere(tmp_path: Path) -> None:
    error = OSError(errno.EROFS, os.strerror(errno.EROFS))
    assert str(cannot_write(tmp_path, error, needed=300)) == (
        f"cannot write {tmp_path}: Read-only file system. What was committed is safe: repair the "
        "cause and run the same command again"
    )

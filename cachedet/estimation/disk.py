"""Rates that a disk sustains: written and waited for, read without the system's cache.

The test file has bytes that do not compress, and is removed whatever happens.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cachedet.store.files.durable import temporary_path

_PIECE = 32 << 20  # bytes between two fsyncs
_LEAST, _MOST = 32 << 20, 4 << 30  # bytes of the test file
_SHARE_OF_FREE = 0.25  # of the disk's free bytes that the test file may take


@dataclass(frozen=True, kw_only=True)
class DiskRates:
    """Bytes per second, sustained."""

    write: float
    read: float
    is_cold: bool  # whether the reading went past the system's cache


def measure_disk(folder: Path, *, nbytes: int, piece: int, free: int, seconds: float) -> DiskRates:
    """Write and read a file in `folder`, each for about so many seconds.

    The file is about as large as the store to come, `nbytes`: a disk whose write cache holds it may
    use that cache. `piece` are the bytes of one read, as training reads: an image's part, anywhere.

    Raises OSError.
    """
    size = int(min(max(nbytes, _LEAST), _MOST, max(free * _SHARE_OF_FREE, 1)))
    path = temporary_path(folder / "disk")
    try:
        write = _measure_writing(path, size, seconds)
        is_cold = drop_from_cache(path)
        read = _measure_reading(path, max(1, piece), seconds)
    finally:
        path.unlink(missing_ok=True)
    return DiskRates(write=write, read=read, is_cold=is_cold)


def drop_from_cache(path: Path) -> bool:
    """Ask the system to forget a file's content; False where it cannot be asked (macOS)."""
    if not hasattr(os, "posix_fadvise"):
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:  # a file system that does not know it
        return False
    finally:
        os.close(descriptor)
    return True


def sustained_rate(times: list[tuple[int, float]]) -> float:
    """Bytes per second of the later half of (bytes, seconds): a write cache fills in the first."""
    later = times[len(times) // 2 :]
    return sum(nbytes for nbytes, _ in later) / max(sum(taken for _, taken in later), 1e-9)


def _measure_writing(path: Path, size: int, seconds: float) -> float:
    content = np.random.default_rng(0).bytes(min(size, _PIECE))
    times: list[tuple[int, float]] = []
    deadline = time.perf_counter() + seconds
    with path.open("xb", buffering=0) as file:
        done = 0
        while done < size and time.perf_counter() < deadline:
            started = time.perf_counter()
            count = file.write(content)
            os.fsync(file.fileno())
            times.append((count, time.perf_counter() - started))
            done += count
    return sustained_rate(times)


def _measure_reading(path: Path, piece: int, seconds: float) -> float:
    size = path.stat().st_size
    order = np.random.default_rng(0).permutation(-(-size // piece))
    done, started = 0, time.perf_counter()
    with path.open("rb", buffering=0) as file:
        for index in order.tolist():
            file.seek(index * piece)
            done += len(file.read(piece))
            if time.perf_counter() - started > seconds:
                break
    return done / max(time.perf_counter() - started, 1e-9)

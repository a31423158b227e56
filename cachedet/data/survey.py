"""A look at all image files before any work: what they are, and which cannot be used."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cachedet.data.coco import CocoDataset
from cachedet.data.file_names import NearestFiles, require_storable
from cachedet.data.images import SmallImage, decode_small, decoded, opened
from cachedet.errors import BadImageError
from cachedet.structures import SizeHW
from cachedet.text import printable

_LISTED = 20  # bad files named in one message
_SMALL = 48  # pixels of the short side of an image that is only looked at
_LEAST_KEPT = 16  # images that fit into what is kept; larger ones are decoded again


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """What one reading of all image files gave."""

    contents: NDArray[np.uint64]  # (N,) hash of each file's bytes; 0 where it cannot be read
    bad: tuple[tuple[int, str], ...]  # row, reason
    notes: tuple[tuple[int, str], ...]  # row, what was noticed; the image is used
    pixels: dict[int, NDArray[np.uint8]] = field(default_factory=dict)  # by row, as many as fit
    missing: frozenset[int] = frozenset()  # rows of the bad ones whose files are not there


@dataclass(frozen=True, kw_only=True)
class _Finding:
    row: int
    content_hash: int = 0
    fault: str | None = None
    is_missing: bool = False
    note: str | None = None


class _Kept:
    """Pixels of the images that came first, up to a number of bytes."""

    def __init__(self, nbytes: int) -> None:
        self.pixels: dict[int, NDArray[np.uint8]] = {}
        self._left = nbytes
        self._largest = nbytes // _LEAST_KEPT
        self._lock = threading.Lock()

    def offer(self, row: int, pixels: NDArray[np.uint8]) -> None:
        with self._lock:
            if pixels.nbytes <= min(self._left, self._largest):
                self._left -= pixels.nbytes
                self.pixels[row] = pixels


def scan_images(
    dataset: CocoDataset,
    *,
    workers: int,
    keep_nbytes: int = 0,  # of decoded images, which then need no second reading
    on_small: Callable[[int, SmallImage], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Scan:
    """Read and decode every image once, in threads: hashes, and all bad files at once.

    With `on_small`, which is called in these threads with a row and what it holds, images are
    decoded no larger than for a look, and none is kept.
    """
    findings, kept = [], _Kept(keep_nbytes)
    with ThreadPoolExecutor(workers, thread_name_prefix="scan") as readers:
        rows = range(len(dataset.annotations))
        for finding in readers.map(lambda row: _inspect(dataset, row, kept, on_small), rows):
            findings.append(finding)
            if on_progress is not None:
                on_progress(1)
    nearest, names = NearestFiles(dataset.images), dataset.annotations.file_names
    return Scan(
        contents=np.array([one.content_hash for one in findings], dtype=np.uint64),
        bad=tuple(
            (one.row, one.fault + (nearest.hint(names[one.row]) if one.is_missing else ""))
            for one in findings
            if one.fault is not None
        ),
        notes=tuple((one.row, one.note) for one in findings if one.note and not one.fault),
        pixels=kept.pixels,
        missing=frozenset(one.row for one in findings if one.is_missing),
    )


def require_good(dataset: CocoDataset, scan: Scan) -> None:
    """Raises BadImageError that lists the bad files, if there are any."""
    if not scan.bad:
        return
    listed = [f"  {printable(dataset.path_of(row))}: {fault}" for row, fault in scan.bad[:_LISTED]]
    more = len(scan.bad) - len(listed)
    raise BadImageError(
        f"{len(scan.bad)} of {len(dataset.annotations)} images cannot be used:",
        *listed,
        *([f"  and {more} more"] if more else []),
        "Nothing was written. Repair the files, or leave them out with --on-bad-image skip",
    )


def content_hash_of(content: bytes) -> int:
    """What `Scan.contents` holds of a file's bytes."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _inspect(
    dataset: CocoDataset,
    row: int,
    kept: _Kept,
    on_small: Callable[[int, SmallImage], None] | None,
) -> _Finding:
    content_hash, note = 0, None
    try:
        require_storable(dataset.annotations.file_names[row])
        with opened(dataset.path_of(row)) as content:
            content_hash = content_hash_of(content)
            annotated = dataset.annotations.size_of(row)
            if on_small is not None:
                small = decode_small(content, least=_SMALL)
                note = small.note
                on_small(row, small)
                _require_size(small.size_hw, annotated)
            else:
                with decoded(content) as (pixels, note):
                    _require_size((pixels.shape[0], pixels.shape[1]), annotated)
                    kept.offer(row, pixels)
    except BadImageError as error:
        return _Finding(
            row=row,
            content_hash=content_hash,
            fault=str(error),
            is_missing=isinstance(error.__cause__, FileNotFoundError | NotADirectoryError),
        )
    return _Finding(row=row, content_hash=content_hash, note=note)


def _require_size(size_hw: SizeHW, annotated_hw: SizeHW) -> None:
    if size_hw != annotated_hw:
        (height, width), (tall, wide) = size_hw, annotated_hw
        raise BadImageError(f"annotated as {wide}x{tall}, the upright file is {width}x{height}")

"""Pictures and boxes in a store: truth.npz as it is read back, whoever wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.errors import StoreError
from cachedet.store.files.names import TRUTH
from cachedet.store.files.source import ByteSource
from cachedet.store.format.manifest import Manifest, pictures_digest, truth_digest
from cachedet.store.format.npz import load_arrays
from cachedet.structures import MaskCodes, Truth

_LARGEST_SIDE = 1 << 20  # pixels of a picture
_MOST_PICTURES = 1 << 24  # each takes a few hundred bytes of memory beside its arrays
_MEND = "The same `cachedet extract` again writes it anew"
_TRUTH_ARRAYS: dict[str, tuple[str, tuple[str | int, ...]]] = {  # type and shape
    "image_ids": ("int64", ("pictures",)),
    "file_names": ("uint8", ("bytes of names",)),
    "sizes_hw": ("int64", ("pictures", 2)),
    "offsets": ("int64", ("pictures + 1",)),
    "boxes": ("float64", ("boxes", 4)),
    "labels": ("int64", ("boxes",)),
    "crowd": ("bool", ("boxes",)),
    "areas": ("float64", ("boxes",)),
    "contents": ("uint64", ("pictures",)),
    "masks": ("uint8", ("bytes of masks",)),
    "mask_offsets": ("int64", ("boxes + 1",)),
}


def load_truth(source: ByteSource, manifest: Manifest) -> tuple[Truth, NDArray[np.uint64]]:
    """Pictures and boxes kept in the store, with the pictures' content hashes.

    Raises StoreError where they are missing, damaged or not the ones of the manifest.
    """
    arrays = load_arrays(source, TRUTH, wanted=_TRUTH_ARRAYS, remedy=_MEND)
    try:
        _require_shapes(arrays)
        truth = Truth(
            image_ids=arrays["image_ids"],
            file_names=tuple(_names_from_bytes(arrays["file_names"])),
            sizes_hw=arrays["sizes_hw"],
            offsets=arrays["offsets"],
            boxes=arrays["boxes"],
            labels=arrays["labels"],
            crowd=arrays["crowd"],
            areas=arrays["areas"],
            categories=manifest.categories,
            masks=_masks_from(arrays),
        )
        contents = arrays["contents"]
        _require_consistent(truth)
    except (KeyError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        where = source.describe(TRUTH)
        raise StoreError(f"{where} is damaged: {reason}. {_MEND}") from error
    digests = truth_digest(truth), pictures_digest(contents)
    if digests != (manifest.truth_digest, manifest.pictures_digest):
        raise StoreError(
            f"{source.describe(TRUTH)} is not the one this store was extracted with; the same "
            "`cachedet extract` again writes it anew"
        )
    return truth, contents


def _masks_from(arrays: dict[str, NDArray[Any]]) -> MaskCodes | None:
    if "masks" not in arrays:
        return None
    return MaskCodes(codes=arrays["masks"], offsets=arrays["mask_offsets"])


def _require_shapes(arrays: dict[str, NDArray[Any]]) -> None:
    """Before any of them becomes Python objects. Raises KeyError or ValueError."""
    rows, boxes = arrays["image_ids"].size, arrays["labels"].size
    if rows > _MOST_PICTURES:
        raise ValueError(f"{rows:,} pictures are more than a store may hold, {_MOST_PICTURES:,}")
    lengths: dict[str | int, int] = {
        "pictures": rows,
        "pictures + 1": rows + 1,
        "boxes": boxes,
        "boxes + 1": boxes + 1,
    }
    for name, array in arrays.items():
        dtype, axes = _TRUTH_ARRAYS[name]
        shape = tuple(
            axis if isinstance(axis, int) else lengths.get(axis, array.size) for axis in axes
        )
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {dtype} {shape}")
    joined = arrays["file_names"]
    names = int(np.count_nonzero(joined == ord("\n"))) + bool(joined.size)
    if names != rows:
        raise ValueError(f"there are {names} file names for {rows} pictures")


def _require_consistent(truth: Truth) -> None:
    """Raises ValueError where the values do not describe one set of pictures and boxes."""
    rows, boxes = len(truth), len(truth.labels)
    if rows and not 1 <= truth.sizes_hw.min() <= truth.sizes_hw.max() <= _LARGEST_SIDE:
        raise ValueError(f"sizes_hw must be 1 to {_LARGEST_SIDE}")
    if truth.offsets[0] != 0 or truth.offsets[-1] != boxes or (np.diff(truth.offsets) < 0).any():
        raise ValueError("offsets must rise from 0 to the number of boxes")
    if truth.masks is not None:
        ends = truth.masks.offsets
        if ends[0] != 0 or ends[-1] != len(truth.masks.codes) or (np.diff(ends) < 0).any():
            raise ValueError("mask_offsets must rise from 0 to the number of bytes in masks")
    if boxes and not 0 <= truth.labels.min() <= truth.labels.max() < len(truth.categories):
        raise ValueError(f"labels must be 0 to {len(truth.categories) - 1}")
    if not np.isfinite(truth.boxes).all():
        raise ValueError("boxes must be finite")


def _names_from_bytes(encoded: NDArray[np.uint8]) -> Sequence[str]:
    """Inverse of the file names in `truth_arrays`."""
    text = encoded.tobytes().decode()
    return text.split("\n") if text else []
